"""The scan header as a table: each element of version 1 beside the attribute of version 2 that holds it.

Written from `ismrmrd.xsd` (ISMRMRD 1.x) and `mrd_header.yml` (MRD 2.1), which have the same tree; the order is that of
the schema, which XML of version 1 has to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import mrd

from server.mrd2.values import (
    DATE,
    DOUBLE,
    FLOAT,
    LONG,
    SHORT,
    TEXT,
    TIME,
    UNSIGNED,
    UNSIGNED_LONG,
    Leaf,
    choice,
)


class Occurs(Enum):
    """How often an element stands in its parent."""

    ONCE = "once"
    OPTIONAL = "optional"
    MANY = "many"


@dataclass(frozen=True, slots=True)
class Field:
    """An element.

    Attributes:
        v1: its name in XML.
        v2: the attribute.
        kind: what it holds.
        occurs: how often.
        absent: what version 2 gets where it is needed but missing; None means the package's own default.
    """

    v1: str
    v2: str
    kind: Leaf | Record
    occurs: Occurs = Occurs.OPTIONAL
    absent: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """An element with elements in it."""

    make: type[Any]
    fields: tuple[Field, ...]


_ONCE, _OPTIONAL, _MANY = Occurs.ONCE, Occurs.OPTIONAL, Occurs.MANY


def _axes(make: type[Any], kind: Leaf, absent: int | None = None) -> Record:
    return Record(make, tuple(Field(axis, axis, kind, _ONCE, absent) for axis in "xyz"))


def _parameter(make: type[Any], kind: Leaf) -> Record:
    return Record(make, (Field("name", "name", TEXT, _ONCE), Field("value", "value", kind, _ONCE)))


_LONG_PARAMETER = Field(
    "userParameterLong", "user_parameter_long", _parameter(mrd.UserParameterLongType, LONG), _MANY
)  # fmt: skip
_DOUBLE_PARAMETER = Field(
    "userParameterDouble", "user_parameter_double", _parameter(mrd.UserParameterDoubleType, DOUBLE), _MANY
)
_STRING_PARAMETER = Field(
    "userParameterString", "user_parameter_string", _parameter(mrd.UserParameterStringType, TEXT), _MANY
)
_USER_PARAMETERS = Record(
    mrd.UserParametersType,
    (
        _LONG_PARAMETER, _DOUBLE_PARAMETER, _STRING_PARAMETER,
        Field("userParameterBase64", "user_parameter_base64", _parameter(mrd.UserParameterBase64Type, TEXT), _MANY),
    ),
)  # fmt: skip

_SUBJECT = Record(
    mrd.SubjectInformationType,
    (
        Field("patientName", "patient_name", TEXT),
        Field("patientWeight_kg", "patient_weight_kg", FLOAT),
        Field("patientHeight_m", "patient_height_m", FLOAT),
        Field("patientID", "patient_id", TEXT),
        Field("patientBirthdate", "patient_birthdate", DATE),
        Field("patientGender", "patient_gender", choice(mrd.PatientGender, "M F O")),
    ),
)
_STUDY = Record(
    mrd.StudyInformationType,
    (
        Field("studyDate", "study_date", DATE),
        Field("studyTime", "study_time", TIME),
        Field("studyID", "study_id", TEXT),
        Field("accessionNumber", "accession_number", LONG),
        Field("referringPhysicianName", "referring_physician_name", TEXT),
        Field("studyDescription", "study_description", TEXT),
        Field("studyInstanceUID", "study_instance_uid", TEXT),
        Field("bodyPartExamined", "body_part_examined", TEXT),
    ),
)
_DEPENDENCY = Record(
    mrd.MeasurementDependencyType,
    (Field("dependencyType", "dependency_type", TEXT, _ONCE), Field("measurementID", "measurement_id", TEXT, _ONCE)),
)
_REFERENCED = Record(
    mrd.ReferencedImageSequenceType,
    (Field("referencedSOPInstanceUID", "referenced_sop_instance_uid", TEXT, _MANY),),
)
_MEASUREMENT = Record(
    mrd.MeasurementInformationType,
    (
        Field("measurementID", "measurement_id", TEXT),
        Field("seriesDate", "series_date", DATE),
        Field("seriesTime", "series_time", TIME),
        Field("patientPosition", "patient_position",
              choice(mrd.PatientPosition, "HFP HFS HFDR HFDL FFP FFS FFDR FFDL"), _ONCE),
        Field("relativeTablePosition", "relative_table_position", _axes(mrd.ThreeDimensionalFloat, FLOAT)),
        Field("initialSeriesNumber", "initial_series_number", LONG),
        Field("protocolName", "protocol_name", TEXT),
        Field("sequenceName", "sequence_name", TEXT),
        Field("seriesDescription", "series_description", TEXT),
        Field("measurementDependency", "measurement_dependency", _DEPENDENCY, _MANY),
        Field("seriesInstanceUIDRoot", "series_instance_uid_root", TEXT),
        Field("frameOfReferenceUID", "frame_of_reference_uid", TEXT),
        Field("referencedImageSequence", "referenced_image_sequence", _REFERENCED),
    ),
)  # fmt: skip
_COIL = Record(
    mrd.CoilLabelType, (Field("coilNumber", "coil_number", SHORT, _ONCE), Field("coilName", "coil_name", TEXT, _ONCE))
)
_SYSTEM = Record(
    mrd.AcquisitionSystemInformationType,
    (
        Field("systemVendor", "system_vendor", TEXT),
        Field("systemModel", "system_model", TEXT),
        Field("systemFieldStrength_T", "system_field_strength_t", FLOAT),
        Field("relativeReceiverNoiseBandwidth", "relative_receiver_noise_bandwidth", FLOAT),
        Field("receiverChannels", "receiver_channels", SHORT),
        Field("coilLabel", "coil_label", _COIL, _MANY),
        Field("institutionName", "institution_name", TEXT),
        Field("stationName", "station_name", TEXT),
        Field("deviceID", "device_id", TEXT),
        Field("deviceSerialNumber", "device_serial_number", TEXT),
    ),
)
_SPACE = Record(
    mrd.EncodingSpaceType,
    (
        Field("matrixSize", "matrix_size", _axes(mrd.MatrixSizeType, SHORT, 1), _ONCE),
        Field("fieldOfView_mm", "field_of_view_mm", _axes(mrd.FieldOfViewMm, FLOAT), _ONCE),
    ),
)
LIMIT: Final = Record(
    mrd.LimitType,
    tuple(Field(name, name, SHORT, _ONCE) for name in ("minimum", "maximum", "center")),
)
_LIMITS = Record(
    mrd.EncodingLimitsType,
    tuple(
        Field(name, name, LIMIT)
        for name in (
            "kspace_encoding_step_0", "kspace_encoding_step_1", "kspace_encoding_step_2", "average", "slice",
            "contrast", "phase", "repetition", "set", "segment", *(f"user_{number}" for number in range(8)),
        )
    ),
)  # fmt: skip
_TRAJECTORY = Record(
    mrd.TrajectoryDescriptionType,
    (
        Field("identifier", "identifier", TEXT, _ONCE),
        _LONG_PARAMETER, _DOUBLE_PARAMETER, _STRING_PARAMETER,
        Field("comment", "comment", TEXT),
    ),
)  # fmt: skip
_ACCELERATION = Record(
    mrd.AccelerationFactorType,
    tuple(Field(name, name, SHORT, _ONCE, 1) for name in ("kspace_encoding_step_1", "kspace_encoding_step_2")),
)
_SPACING = Record(mrd.MultibandSpacingType, (Field("dZ", "d_z", FLOAT, _MANY),))
_MULTIBAND = Record(
    mrd.MultibandType,
    (
        Field("spacing", "spacing", _SPACING, _MANY),
        Field("deltaKz", "delta_kz", FLOAT, _ONCE),
        Field("multiband_factor", "multiband_factor", UNSIGNED, _ONCE),
        Field("calibration", "calibration", choice(mrd.Calibration, "separable2D full3D other"), _ONCE),
        Field("calibration_encoding", "calibration_encoding", UNSIGNED_LONG, _ONCE),
    ),
)
_PARALLEL = Record(
    mrd.ParallelImagingType,
    (
        Field("accelerationFactor", "acceleration_factor", _ACCELERATION, _ONCE),
        Field("calibrationMode", "calibration_mode",
              choice(mrd.CalibrationMode, "embedded interleaved separate external other")),
        Field("interleavingDimension", "interleaving_dimension",
              choice(mrd.InterleavingDimension, "phase repetition contrast average other")),
        Field("multiband", "multiband", _MULTIBAND),
    ),
)  # fmt: skip
_ENCODING = Record(
    mrd.EncodingType,
    (
        Field("encodedSpace", "encoded_space", _SPACE, _ONCE),
        Field("reconSpace", "recon_space", _SPACE, _ONCE),
        Field("encodingLimits", "encoding_limits", _LIMITS, _ONCE),
        Field("trajectory", "trajectory", choice(mrd.Trajectory, "cartesian epi radial goldenangle spiral other"),
              _ONCE),
        Field("trajectoryDescription", "trajectory_description", _TRAJECTORY),
        Field("parallelImaging", "parallel_imaging", _PARALLEL),
        Field("echoTrainLength", "echo_train_length", LONG),
    ),
)  # fmt: skip
_DIRECTION = Record(
    mrd.GradientDirectionType, tuple(Field(name, name, FLOAT, _ONCE) for name in ("rl", "ap", "fh"))
)  # fmt: skip
_DIFFUSION = Record(
    mrd.DiffusionType,
    (
        Field("gradientDirection", "gradient_direction", _DIRECTION, _ONCE),
        Field("bvalue", "bvalue", FLOAT, _ONCE),
    ),
)
_SEQUENCE = Record(
    mrd.SequenceParametersType,
    (
        Field("TR", "t_r", FLOAT, _MANY),
        Field("TE", "t_e", FLOAT, _MANY),
        Field("TI", "t_i", FLOAT, _MANY),
        Field("flipAngle_deg", "flip_angle_deg", FLOAT, _MANY),
        Field("sequence_type", "sequence_type", TEXT),
        Field("echo_spacing", "echo_spacing", FLOAT, _MANY),
        Field("diffusionDimension", "diffusion_dimension", choice(
            mrd.DiffusionDimension, "average contrast phase repetition set segment "
            "user_0 user_1 user_2 user_3 user_4 user_5 user_6 user_7")),
        Field("diffusion", "diffusion", _DIFFUSION, _MANY),
        Field("diffusionScheme", "diffusion_scheme", TEXT),
    ),
)  # fmt: skip
_WAVEFORM = Record(
    mrd.WaveformInformationType,
    (
        Field("waveformName", "waveform_name", TEXT, _ONCE),
        Field("waveformType", "waveform_type",
              choice(mrd.WaveformType, "ecg pulse respiratory trigger gradientwaveform other"), _ONCE),
        Field("userParameters", "user_parameters", _USER_PARAMETERS, _ONCE),
    ),
)  # fmt: skip
HEADER: Final = Record(
    mrd.Header,
    (
        Field("version", "version", LONG),
        Field("subjectInformation", "subject_information", _SUBJECT),
        Field("studyInformation", "study_information", _STUDY),
        Field("measurementInformation", "measurement_information", _MEASUREMENT),
        Field("acquisitionSystemInformation", "acquisition_system_information", _SYSTEM),
        Field(
            "experimentalConditions", "experimental_conditions",
            Record(mrd.ExperimentalConditionsType,
                   (Field("H1resonanceFrequency_Hz", "h1resonance_frequency_hz", LONG, _ONCE),)),
            _ONCE,
        ),
        Field("encoding", "encoding", _ENCODING, _MANY),
        Field("sequenceParameters", "sequence_parameters", _SEQUENCE),
        Field("userParameters", "user_parameters", _USER_PARAMETERS),
        Field("waveformInformation", "waveform_information", _WAVEFORM, _MANY),
    ),
)  # fmt: skip
"""The whole header."""
