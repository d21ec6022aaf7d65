"""Files of every kind of source, made from images with known instances."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

# In every tag that may tell who a patient is.
SECRET = "Zaphod^Beeblebrox"
SECRETS = (SECRET, "MRN-424242", "19790425", "Milliways General", "Slartibartfast")


@dataclass(frozen=True)
class Case:
    """`pixels` `(H, W)` uint16 and `labels` `(H, W)`, 0 background."""

    pixels: np.ndarray
    labels: np.ndarray

    @property
    def masks(self) -> set[bytes]:
        """Each instance as its packed mask: equal sets are equal instances."""
        return {np.packbits(self.labels == v).tobytes() for v in np.unique(self.labels) if v}


def blobs(seed: int, size: int = 96, count: int = 9) -> Case:
    """Discs on a grid that do not touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.uint16)
    rows, columns = np.mgrid[:size, :size]
    side = int(np.ceil(count**0.5))
    for index in range(count):
        step = size / side
        y, x = (index // side + 0.5) * step, (index % side + 0.5) * step
        radius = rng.uniform(4, step / 2 - 3)
        labels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = index + 1
    pixels = rng.normal(300, 20, labels.shape) + 1500 * (labels > 0)
    return Case(pixels.clip(0, 4095).astype(np.uint16), labels)


def masks_of(folder: Path) -> dict[str, set[bytes]]:
    """By image file, the masks in the annotation files of a prepared folder."""
    found: dict[str, set[bytes]] = {}
    for path in (folder / f"{name}.json" for name in ("train", "val", "test")):
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for name in names.values():
            assert name not in found, "an image in two splits"
            found[name] = set()
        for entry in content["annotations"]:
            mask = mask_util.decode(entry["segmentation"]).astype(bool)
            assert entry["area"] == mask.sum()
            found[names[entry["image_id"]]].add(np.packbits(mask).tobytes())
    return found


def write_bowl(folder: Path, cases: list[Case]) -> None:
    """`ID/images/ID.png` and `ID/masks/*.png`, as in the Data Science Bowl."""
    for number, case in enumerate(cases):
        root = folder / f"case{number}"
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        grey = (case.pixels >> 4).astype(np.uint8)
        # The challenge's images have an alpha channel.
        rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
        Image.fromarray(rgba).save(root / "images" / f"case{number}.png")
        for value in np.unique(case.labels):
            if value:
                mask = ((case.labels == value) * 255).astype(np.uint8)
                Image.fromarray(mask).save(root / "masks" / f"{value:03d}abc.png")


def dicom_image(case: Case, index: int, patient: str = "MRN-424242", series: str = "1.2.3.4"):
    """A CT slice with every identifying tag filled; HU are the pixels less 1024."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{series}.{index + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = series
    data.StudyInstanceUID = f"{series}.0"
    data.FrameOfReferenceUID = f"{series}.99"
    data.PatientName = SECRET
    data.PatientID = patient
    data.PatientBirthDate = "19790425"
    data.PatientSex = "M"
    data.InstitutionName = "Milliways General"
    data.ReferringPhysicianName = "Slartibartfast"
    data.ImageComments = SECRET
    data.SeriesDescription = SECRET
    data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = ""
    data.Modality = "CT"
    data.Manufacturer = ""
    data.SeriesNumber = 1
    # Number against the order in space, as scanners do.
    data.InstanceNumber = 100 - index
    data.ImagePositionPatient = [0, 0, 2.5 * index]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [0.7, 0.8]
    data.SliceThickness = 2.5
    data.Rows, data.Columns = case.pixels.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = case.pixels.astype("<u2").tobytes()
    return data


def write_series(folder: Path, cases: list[Case], **options) -> list:
    """A series of DICOM files whose names are in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = [dicom_image(case, index, **options) for index, case in enumerate(cases)]
    for index, data in enumerate(slices):
        data.save_as(folder / f"IM{(index * 7 + 3) % 10}{index}.dcm", enforce_file_format=True)
    return slices


def write_segmentation(
    path: Path, slices: list, cases: list[Case], *, inside: int = 0, outside: int = 0
) -> None:
    """A DICOM-SEG with a segment for each instance of each slice.

    With `inside`, it is a fractional one with these values, of 255 at most, in and around an
    instance.
    """
    highdicom = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes

    parts = [
        case.labels[None] == value for case in cases for value in np.unique(case.labels) if value
    ]
    owners = [i for i, case in enumerate(cases) for v in np.unique(case.labels) if v]
    array = np.zeros((len(slices), *cases[0].labels.shape, len(parts)), np.uint8)
    for segment, (owner, mask) in enumerate(zip(owners, parts, strict=True)):
        array[owner, ..., segment] = mask[0]
    if inside:
        array = np.where(array, inside, outside) / np.float32(255)
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label=f"{SECRET} {number}",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Cell,
            algorithm_type="MANUAL",
        )
        for number in range(len(parts))
    ]
    highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=array,
        segmentation_type="FRACTIONAL" if inside else "BINARY",
        segment_descriptions=descriptions,
        series_instance_uid="1.2.3.5",
        series_number=2,
        sop_instance_uid="1.2.3.5.1",
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    ).save_as(path)
