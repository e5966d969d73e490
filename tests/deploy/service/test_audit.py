"""The audit of the calibration: what is drawn, whose labels count, and what is left after a kill or a full disk."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.calibration import Calibration
from artifacts.metadata import ModelMetadata
from common.atomic_io import ResultsError
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.predictor import Predictor
from deploy.service.audit import EXCEEDED, HELD, UNTESTED, Audit
from deploy.service.audit_file import open_audit_file
from deploy.service.request_parser import RequestError
from deploy.service.routes import ServiceError
from deploy.service.server import open_server
from tests.helpers.serving import METADATA, GatedBackend, RunningService, base64_of, flags, png, running, write_page

CALIBRATED = replace(
    METADATA,
    temperature=1.0,
    thresholds={"accept": 0.9, "conformal": 0.9},
    calibration=Calibration("least_confidence", 0.05, 0.95, 0.05, 1000, 900, 3, 0.008),
    weights_sha256="ab" * 32,
)
DARK = ClassPrediction("", 0, "dark", 0.9, (("dark", 0.9),), 0.1, "accept", ("dark",))
ASIDE = replace(DARK, decision="set_aside")


@contextmanager
def opened(path: Path, metadata: ModelMetadata = CALIBRATED, share: float = 1.0) -> Iterator[Audit]:
    with open_audit_file(path, metadata) as file:
        yield Audit(file, metadata, share)


def refusal(audit: Audit, audit_id: str, name: str | None) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        audit.take_label(audit_id, name)
    return caught.value.status, str(caught.value)


def test_labels_count_once_and_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep/audit.jsonl"
    with opened(path) as audit:
        assert audit.status == UNTESTED
        ids = [audit.mark(DARK)["audit_id"] for _ in range(4)]
        assert len(set(ids)) == 4
        assert audit.take_label(ids[0], "dark") == {"labelled": 1, "wrong": 0, "calibration_target": HELD}
        assert audit.take_label(ids[1], "bright")["wrong"] == 1
        assert audit.take_label(ids[2], None) == {"labelled": 3, "wrong": 2, "calibration_target": HELD}
        assert audit.take_label(ids[1], "bright")["labelled"] == 3  # a client's second try
        assert refusal(audit, ids[1], "dark") == (409, "this prediction has another label already")
        before = audit.metrics()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with opened(path) as audit:
        assert audit.metrics() == {**before, "drawn": 0}
        assert audit.take_label(ids[2], None)["labelled"] == 3
        assert audit.take_label(ids[3], "grey")["labelled"] == 4
    assert [entry.name for entry in path.parent.iterdir()] == ["audit.jsonl"]


def test_ids_that_were_not_given_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "other") as audit:
        foreign = audit.mark(DARK)["audit_id"]
    with opened(tmp_path / "audit") as audit:
        own = audit.mark(DARK)["audit_id"]
        nonce, _, signature = own.split(".")
        forged = [foreign, "", "x" * 10_000, f"{nonce}.1.{signature}", f"{nonce}.0.{'0' * 32}", own + "\n", f"é{own}"]
        for audit_id in forged:
            assert refusal(audit, audit_id, "dark") == (422, "this audit_id was not given for this net")
        status, message = refusal(audit, own, "dork")
        assert (status, message) == (422, '"dork" is no class of this net; null stands for none of them')
        assert audit.metrics()["labelled"] == 0


def test_only_accepted_predictions_are_drawn_by_their_share(tmp_path: Path) -> None:
    with opened(tmp_path / "audit", share=0.25) as audit:
        assert "audit_id" not in audit.mark(ASIDE) and audit.mark(replace(DARK, decision="")) == {}
        drawn = sum("audit_id" in audit.mark(DARK) for _ in range(2000))
        assert 400 < drawn < 600 and audit.drawn == drawn  # a binomial's standard deviation is 19


def test_enough_wrong_labels_say_that_the_target_is_exceeded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "audit") as audit:
        while audit.status != EXCEEDED:
            audit.take_label(audit.mark(DARK)["audit_id"], "bright")
        assert 3 <= audit.metrics()["labelled"] <= 6 and audit.metrics()["evidence"] >= 20
        assert [record.message.partition(":")[0] for record in caplog.records] == [
            f"{audit.metrics()['wrong']} of {audit.metrics()['wrong']} audited predictions are wrong"
        ]
        assert audit.mark(DARK)["calibration_target"] == EXCEEDED
    with opened(tmp_path / "audit") as audit:
        assert audit.status == EXCEEDED


def test_more_images_set_aside_than_at_the_calibration_are_a_drift(tmp_path: Path) -> None:
    """At the calibration 100 of 1,000; the true share is below 13.9 % with confidence 0.95 (Hoeffding)."""
    with opened(tmp_path / "audit") as audit:
        for number in range(600):
            audit.mark(ASIDE if number % 10 == 0 else DARK)
        assert not audit.has_drifted
        for number in range(600):
            audit.mark(ASIDE if number % 3 == 0 else DARK)
        assert audit.has_drifted and audit.status == UNTESTED  # a warning alone


def test_a_line_that_was_cut_is_dropped_and_a_damaged_one_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with opened(path) as audit:
        ids = [audit.mark(DARK)["audit_id"] for _ in range(2)]
        audit.take_label(ids[0], "dark")
    with path.open("ab") as file:
        file.write(b'{"id": "00112233')
    with opened(path) as audit:
        assert audit.take_label(ids[1], "dark")["labelled"] == 2
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3
    whole = path.read_bytes()
    for damage in (b"null\n", b'{"id": "a", "predicted": 3, "label": 0}\n', b"[" * 5000 + b"\n", b"\xff\n"):
        path.write_bytes(whole + damage)
        with pytest.raises(ServiceError, match="audit:4: it is no line of an audit file"), opened(path):
            pass
    path.write_bytes(b"")
    with pytest.raises(ServiceError, match="audit:1: it is no line of an audit file"), opened(path):
        pass


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "audit", os.write
    with opened(path) as audit:
        first, second = (audit.mark(DARK)["audit_id"] for _ in range(2))
        audit.take_label(first, "dark")
        whole = path.read_bytes()
        monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:20]))
        assert refusal(audit, second, "dark") == (503, "the label cannot be written: the disk is full")

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", write)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            assert refusal(audit, second, "dark") == (503, "the label cannot be written: No space left on device")
        assert path.read_bytes() == whole and audit.metrics()["labelled"] == 1
        path.rename(tmp_path / "moved")
        moved = "audit was moved, removed or cut while it is in use; bring it back"
        assert refusal(audit, second, "dark") == (503, f"the label cannot be written: {moved}")
        (tmp_path / "moved").rename(path)
        assert audit.take_label(second, "dark")["labelled"] == 2


def test_a_file_belongs_to_one_net_and_one_service(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with opened(path):
        pass
    for other in (replace(CALIBRATED, weights_sha256="cd" * 32), replace(CALIBRATED, temperature=2.0)):
        with pytest.raises(ServiceError, match="it belongs to another net or calibration"), opened(path, other):
            pass
    with pytest.raises(ResultsError), opened(path / "below"):
        pass
    with pytest.raises(ResultsError, match="cannot write it"), opened(tmp_path):
        pass
    args = flags("--audit", tmp_path / "new")
    with (
        pytest.raises(ServiceError, match="--audit tests the target risk of a calibrated classifier"),
        open_server(Predictor(GatedBackend(), METADATA), [], args),
    ):
        pass


# --- over HTTP


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("audited")
    args = flags("--workers", 1, "--audit", folder / "audit", "--audit_share", 1)
    backend = GatedBackend()
    with running(Predictor(backend, CALIBRATED), args, "secret", write_page(folder)) as port:
        yield RunningService(port, backend)


HEADERS = {"content-type": "application/json", "authorization": "Bearer secret"}


def feedback(service: RunningService, body: object, headers: dict[str, str] = HEADERS) -> tuple[int, str]:
    status, values, _ = service.send("/feedback", body, headers)
    assert status == values["code"]
    return status, values["msg"]


def test_a_label_is_given_over_http(service: RunningService) -> None:
    body = {"content": [base64_of(png(250)), base64_of(png(3))]}
    status, values, _ = service.send("/predict", body, HEADERS)
    assert status == 200 and [entry["calibration_target"] for entry in values["data"]] == [UNTESTED] * 2
    entry = values["data"][0]
    assert entry["decision"] == "accept"
    status, values, _ = service.send("/feedback", {"audit_id": entry["audit_id"], "class": entry["class"]}, HEADERS)
    assert (status, values["data"]) == (200, [{"labelled": 1, "wrong": 0, "calibration_target": HELD}])
    ready = service.get("/readyz")[1]
    assert ready == {"status": "ready", "calibration_target": HELD, "drift": False}
    text = service.get("/metrics", authorization="Bearer secret")[1].decode()
    assert "service_audit_labelled 1.0\n" in text and "service_audit_exceeded 0.0\n" in text
    assert 'service_requests_total{code="200",route="/feedback"} 1.0\n' in text
    assert "/feedback" in json.dumps(service.get("/openapi.json")[1])
    assert "POST /feedback" in service.get("/docs")[1].decode()


def test_what_is_no_label_is_refused(service: RunningService) -> None:
    assert feedback(service, {"audit_id": "a", "class": "dark"}, {"content-type": "application/json"})[0] == 401
    assert (
        feedback(service, {}, {**HEADERS, "origin": "https://evil.example", "sec-fetch-site": "cross-site"})[0] == 403
    )
    assert feedback(service, {}, {**HEADERS, "host": "evil.example"})[0] == 421
    assert feedback(service, b"x", {**HEADERS, "content-type": "text/plain"}) == (
        415,
        "the Content-Type must be application/json",
    )
    assert feedback(service, b" " * 16_385) == (413, "the body has more than 16384 bytes")
    assert feedback(service, b"x", {**HEADERS, "content-encoding": "gzip"})[0] == 415
    wanted = 'the body must be {"audit_id": "...", "class": "..."}'
    for body in (b"", b"\xff", b"[" * 9000, b"{"):
        assert feedback(service, body) == (400, "the body is no JSON")
    others: tuple[object, ...] = (3, [], {}, {"audit_id": "a"}, {"audit_id": "a", "class": "dark", "more": 1})
    for values in others:
        assert feedback(service, values) == (400, wanted)
    assert feedback(service, {"audit_id": 3, "class": "dark"}) == (400, '"audit_id" must be a text, got 3')
    assert feedback(service, {"audit_id": "a", "class": 0}) == (
        400,
        '"class" must be the name of a class, or null, got 0',
    )
    assert feedback(service, {"audit_id": "a", "class": "dark"}) == (422, "this audit_id was not given for this net")
    assert service.get("/feedback", authorization="Bearer secret")[0] == 405
