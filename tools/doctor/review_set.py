"""A doctor's findings as standard annotations, which browser/images opens, and what a review of them refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checksums import file_sha256
from common.console import printable
from common.errors import UserError
from common.formatting import parse_json
from data_loader.samples import current_folder
from datasets.files import ANNOTATION, META, read_annotations, read_meta, write_annotations
from datasets.filters import read_review
from datasets.outcome import Outcome
from datasets.pictures import place_file
from datasets.records import NO_LABEL, Record
from tools.doctor.checks import NOTE
from tools.doctor.report import REPORT

FOLDER = "doctor_review"  # beside doctor.json
PATH = "doctor_path"  # of a record: what the doctor calls its image
LONGEST_NAME = 60  # letters, of four bytes at most
NEAR = "look-alikes"  # of notes only these are for a person to judge


class ReviewSetError(UserError):
    """Findings that cannot be reviewed, or a review of others; the message is one sentence for the user."""


def review_set(report: Path, outcome: Outcome) -> Path:
    """Return the annotations of the images that a report's findings are about, made beside it where they are not yet.

    The most severe finding comes first, related images one after the other; images are linked or copied. Raises
    ReviewSetError, OSError.
    """
    folder, made_of = report.parent / FOLDER, f"the findings of {REPORT}, sha256 {file_sha256(report)}"
    source = folder / ANNOTATION
    if source.exists() and not outcome.overwrite:
        if read_meta(folder / META)["info"] != made_of:
            raise ReviewSetError(f"{folder}: it was made of an earlier {REPORT}; move it away or add --overwrite")
        return source
    content = _read(report)
    names = [row["name"] for row in content["classes"]]
    records = list(_records(content["findings"], names, folder, outcome))
    if not records:
        raise ReviewSetError(f"{report}: its findings name no image that could be looked at")
    write_annotations(folder, records, names, {"info": made_of})
    return source


def refused_paths(review: Path, tags: Sequence[str]) -> list[str]:
    """Return the images, by the doctor's paths, to which a review of its findings gave one of the tags.

    Raises ReviewSetError for another review, ListError, DatasetError, OSError.
    """
    if not review.is_file():
        raise ReviewSetError(f"--reviewed {review}: it is not there{current_folder(str(review))}")
    source = review.with_name(review.name.removesuffix("_browser.json") + ".json")
    records = read_annotations(source).records if source.is_file() else []
    refused = []
    for index, (title, given) in read_review(review).items():
        record = records[index] if index < len(records) else {}
        if PATH not in record or record.get("image_file") != title:
            raise ReviewSetError(f"--reviewed {review}: it is no review of what browser/images makes of a {REPORT}")
        if given & set(tags):
            refused.append(record[PATH])
    return refused


def _read(report: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_json(report.read_text(encoding="utf-8"))
        is_whole = all("groups" in finding for finding in content["findings"]) and "classes" in content
    except (ValueError, RecursionError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ReviewSetError(f"{report}: it is not what python -m tools.doctor writes")
    return content


def _records(
    findings: Sequence[Mapping[str, Any]], names: Sequence[str], folder: Path, outcome: Outcome
) -> Iterator[Record]:
    """Yield a record for each image, where it is found first; `tag` has all of its findings."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for finding in findings:
        if finding["level"] != NOTE or NEAR in finding["kind"]:
            for image in (image for group in finding["groups"] for image in group):
                found.setdefault(image["path"], []).append((finding["kind"], image))
    for number, (path, entries) in enumerate(found.items(), 1):
        kind, image = entries[0]
        name = f"images/{kind}/{number:04d}_{printable(Path(path).name)[-LONGEST_NAME:]}".replace("\\", "_")
        if not Path(path).is_file():
            outcome.leave_out(path, "no such file")
            continue
        try:
            place_file(Path(path), folder / name, overwrite=outcome.overwrite)
        except OSError as error:
            outcome.leave_out(path, (error.strerror or str(error)).lower())
            continue
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in entries))
        label = names.index(image["class"]) if image["class"] in names else NO_LABEL
        record = {"image_file": name, "image_label": label, "image_label_name": image["class"], PATH: path}
        judged = [image for _, image in entries if image.get("predicted")]
        if judged:
            record["predictions"] = {"image_label_name": judged[0]["predicted"], "score": judged[0]["score"]}
        yield {**record, "tag": f"{kinds} ({printable(image['where'])})"}
