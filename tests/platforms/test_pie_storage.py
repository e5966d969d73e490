"""Data sets and weights in an S3-compatible store: listed, cached by ETag, and patiently fetched through faults."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.paths import ROOT
from platforms.pie_engine import storage
from platforms.pie_engine.access import DatasetAccess
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.places import find_resume, find_source
from platforms.pie_engine.prefetch import cache_path, list_data
from platforms.pie_engine.storage import PAUSES_S, Listed, StorageError, new_client, open_store, without_secrets
from tests.helpers.s3 import BUCKET, KEY, SECRET, FaultyServer, Proxy, environment, faulty_server, moto_server

pytest.importorskip("boto3", reason="requirements-pie.txt")
pytest.importorskip("moto", reason="the S3 server of these tests: pip install moto[server]")
pytestmark = [pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")]

FILES = {
    "train/images/1.jpg": b"a", "train/images/2.JPG": b"bb", "train/images/.hidden.jpg": b"h",
    "train/images/deep/3.jpg": b"d", "train/images2/4.jpg": b"x", "train/labels/1.xml": b"<a/>",
    "train/labels/2.xml": b"<b/>",
    "valid/images/5.png": b"c", "valid/labels/5.xml": b"<c/>", "readme.txt": b"r",
}  # fmt: skip
LABEL = [{"class_name": "a", "class_value": 1, "class_color": "255,0,0"}]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def server(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FaultyServer]:
    """Return the proxy before a server with one data set in it, and set the environment for it."""
    with faulty_server(port) as server:
        for name, value in environment(server.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.02, 0.04, 0.08))
        monkeypatch.chdir(tmp_path)
        client = new_client()
        client.create_bucket(Bucket=BUCKET)
        for name in ("sets/d1/", "sets/d1/train/", "sets/d1/train/images/"):
            client.put_object(Bucket=BUCKET, Key=name, Body=b"")  # as consoles make folders
        for name, content in FILES.items():
            client.put_object(Bucket=BUCKET, Key=f"sets/d1/{name}", Body=content)
        monkeypatch.setenv("PIE_DATASET_ROOT", f"s3://{BUCKET}/sets")
        server.requests.clear()
        yield server


def keys(*names: str) -> list[str]:
    return [f"sets/d1/{name}" for name in names]


def test_the_names_of_the_platform(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = DatasetAccess("d1")
    assert access.path == f"s3://{BUCKET}/sets/d1/" and access.bucketName == BUCKET
    assert access.s3.list_buckets()["Buckets"][0]["Name"] == BUCKET
    found = keys("train/images/1.jpg", "train/images/2.JPG", "train/images/deep/3.jpg")
    for place in (access.path + "train/images", access.path + "train/images/", "sets/d1/train/images"):
        assert access.getImages(place) == found
    assert access.getImages(access.path + "train/labels", is_xml=True) == keys(
        "train/labels/1.xml", "train/labels/2.xml"
    )
    with pytest.raises(RuntimeError, match="train/labels: there are no pictures below this prefix"):
        access.getImages(access.path + "train/labels")
    assert "/".join(access.path.split("/")[3:]) + "train/images/1.jpg" == found[0]  # as scripts strip the bucket

    assert access.getImgXmlArray(found[1]) == access.getImgXmlArray(f"s3://{BUCKET}/{found[1]}") == b"bb"
    with pytest.raises(RuntimeError, match=f"s3://{BUCKET}/sets/d1/nothing.jpg: there is no such object"):
        access.getImgXmlArray("sets/d1/nothing.jpg")
    assert access.getObjectSize(found[1]) == 2
    assert access.getFileList(access.path + "valid") == keys("valid/images/5.png", "valid/labels/5.xml")

    assert access.downS3Weight("weights/net.th", found[0]) is True and Path("weights/net.th").read_bytes() == b"a"
    assert (
        access.downS3Weight("weights/other.th", "sets/d1/other.th") is False and not Path("weights/other.th").exists()
    )
    access.pullImage("here")
    pulled = {
        path.relative_to("here").as_posix(): path.read_bytes() for path in Path("here").rglob("*") if path.is_file()
    }
    assert pulled == {name: content for name, content in FILES.items() if name != "readme.txt"}
    access.pullImage("one", found[0])
    assert Path("one/1.jpg").read_bytes() == b"a"
    monkeypatch.setenv("AI_DATASET_ID", "d1")
    assert DatasetAccess().path == access.path
    monkeypatch.delenv("PIE_DATASET_ROOT")
    with pytest.raises(RuntimeError, match="no data set: the environment's PIE_DATASET_ROOT is not set"):
        DatasetAccess()


def test_a_folder_has_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in FILES.items():
        (tmp_path / "sets/d1" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sets/d1" / name).write_bytes(content)
    monkeypatch.setenv("PIE_DATASET_ROOT", str(tmp_path / "sets"))
    access = DatasetAccess("d1")
    root = f"{tmp_path.as_posix()[1:]}/sets/d1"
    assert access.path == f"s3://local/{root}/"
    images = access.getImages(access.path + "train/images/")
    assert images == [f"{root}/train/images/{name}" for name in ("1.jpg", "2.JPG", "deep/3.jpg")]
    assert access.getImgXmlArray("/".join(access.path.split("/")[3:]) + "train/images/1.jpg") == b"a"
    assert access.getObjectSize(images[1]) == 2 and not access.downS3Weight(str(tmp_path / "w"), f"{root}/w")
    (tmp_path / "sets/d1/train/images/4.jpg").symlink_to("4.jpg")
    assert access.getImages(access.path + "train/images/") == images
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=f"{tmp_path}/file: "):
        access.downS3Weight(str(tmp_path / "file/w"), images[0])
    with pytest.raises(RuntimeError, match=r'a key cannot hold "\.\.'):
        access.getImgXmlArray(f"{root}/../../x")


def test_users_scripts_import_it(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "platforms/compat"))
    monkeypatch.delitem(sys.modules, "aiUtils", raising=False)
    module = importlib.import_module("aiUtils")
    assert module.aiUtils.s3GetImg("d1").getImages("sets/d1/valid/images") == keys("valid/images/5.png")
    sys.modules.pop("aiUtils")


def test_more_than_a_page_of_keys(server: FaultyServer) -> None:
    def small_pages(proxy: Proxy) -> bool:
        proxy.path += "&max-keys=2" if "list-type" in proxy.path else ""
        return False

    server.fault = small_pages
    found = list_data(open_store(BUCKET), "sets/d1/")
    assert len(found.objects) == 6 and len(server.requests) > 4


def test_a_data_set_is_fetched_once(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_source({"dataset_id": "d1"})
    assert source.task() == "detection" and source.name == f"s3://{BUCKET}/sets/d1/"
    lines: list[str] = []
    folder = source.folder(lines.append)
    names = ["1.jpg", "2.JPG"]
    assert sorted(path.name for path in (folder / "train/images").iterdir()) == names  # neither hidden nor deeper ones
    assert (folder / "train/images/2.JPG").read_bytes() == b"bb" and not (folder / "train/images2").exists()
    fetched = [line for line in server.requests if line.startswith("GET") and "list-type" not in line]
    assert len(fetched) == 6 and lines == [f"s3://{BUCKET}/sets/d1/: 6 objects, 6 of them fetched, the others in cache"]

    server.requests.clear()
    new_client().put_object(Bucket=BUCKET, Key="sets/d1/train/images/1.jpg", Body=b"A")  # of the same size
    find_source({"dataset_id": "d1"}).folder(lines.append)
    fetched = [line for line in server.requests if line.startswith("GET") and "list-type" not in line]
    assert len(fetched) == 1 and (folder / "train/images/1.jpg").read_bytes() == b"A"
    monkeypatch.setenv("PIE_CACHE_DIR", "elsewhere")
    find_source({"dataset_path": f"s3://{BUCKET}/sets/d1"}).folder(lines.append)
    assert "6 of them fetched, the others in elsewhere" in lines[-1]


def test_a_key_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    for key in ("../../x", "/etc/x", "a/../../../b", "\0", "x" * 2000):
        path = cache_path(tmp_path, "b", Listed(key, 1, "e"))
        assert re.fullmatch(r"objects/[0-9a-f]{2}/[0-9a-f]{64}", path.relative_to(tmp_path).as_posix())
    places = {cache_path(tmp_path, *args) for args in (("b", Listed("k", 1, "e")), ("c", Listed("k", 1, "e")),
              ("b", Listed("l", 1, "e")), ("b", Listed("k", 2, "e")), ("b", Listed("k", 1, "f")))}  # fmt: skip
    assert len(places) == 5


def test_objects_that_vanish_or_change_are_bad_samples(server: FaultyServer) -> None:
    source = find_source({"dataset_id": "d1"})
    client = new_client()
    client.delete_object(Bucket=BUCKET, Key="sets/d1/train/images/1.jpg")
    client.put_object(Bucket=BUCKET, Key="sets/d1/train/labels/2.xml", Body=b"<changed/>")
    lines: list[str] = []
    folder = source.folder(lines.append)
    for name, content in (("images/1.jpg", b""), ("labels/2.xml", b""), ("images/2.JPG", b"bb")):
        assert (folder / "train" / name).read_bytes() == content
    text = "has vanished or changed since it was listed"
    assert lines[:2] == [
        f"warning: s3://{BUCKET}/sets/d1/train/{name} {text}" for name in ("images/1.jpg", "labels/2.xml")
    ]


def failing(status: int, times: int, only: str = "GET") -> Any:
    """Return a fault that answers the next requests of a method with an error."""
    left = [times]

    def fault(proxy: Proxy) -> bool:
        if left[0] and proxy.command == only:
            left[0] -= 1
            proxy.answer(status, b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>")
            return True
        return False

    return fault


def cutting(times: int) -> Any:
    """Return a fault that breaks the next bodies off."""
    left = [times]

    def fault(proxy: Proxy) -> bool:
        if left[0] and "list-type" not in proxy.path:
            left[0] -= 1
            proxy.answer(200, b"x" * 1000, {"ETag": '"e"'}, cut=500)
            return True
        return False

    return fault


def test_passing_faults_are_tried_again(server: FaultyServer, tmp_path: Path) -> None:
    store = open_store(BUCKET)
    for fault in (failing(503, 4), failing(500, 4), cutting(4)):
        server.fault = fault
        assert store.read("sets/d1/train/images/2.JPG") == b"bb"
        server.fault = None
    server.fault = cutting(4)
    store.download("sets/d1/train/images/2.JPG", tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"bb" and [path.name for path in tmp_path.iterdir()] == ["whole"]
    server.fault = failing(503, 5)
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/sets/d1/: the store says SlowDown: Reduce your rate"):
        [*store.list("sets/d1/")]
    assert len([line for line in server.requests if "list-type" in line]) == 5


def test_what_will_not_pass_is_told_at_once(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError) as error:
        find_source({"dataset_path": "s3://no-such-bucket/sets/d1/"})
    assert "s3://no-such-bucket/sets/d1/" in str(error.value) and "NoSuchBucket" in str(error.value)
    source = find_source({"dataset_path": f"s3://{BUCKET}/nothing/"})
    with pytest.raises(
        RequestError, match=f"s3://{BUCKET}/nothing/: no data for any task: expected train/.*nothing is"
    ):
        source.task()
    for place in ("odd/train/pictures", "flat/images"):
        new_client().put_object(Bucket=BUCKET, Key=f"sets/{place}/1.jpg", Body=b"1")
        folder = "/".join(place.split("/")[1:])
        with pytest.raises(RequestError, match=f"no data for any task: expected train/.*; found {folder}/$"):
            find_source({"dataset_path": f"s3://{BUCKET}/sets/{place.split('/')[0]}/"}).task()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    with pytest.raises(
        RequestError, match="Unable to locate credentials; credentials, region and endpoint are boto3's"
    ):
        find_source({"dataset_id": "d1"})


def test_messages_hold_no_credentials(server: FaultyServer) -> None:
    def telling(proxy: Proxy) -> bool:
        text = f"<Error><Code>SignatureDoesNotMatch</Code><Message>for {KEY} with {SECRET}</Message></Error>"
        proxy.answer(403, text.encode())
        return True

    server.fault = telling
    with pytest.raises(RequestError) as error:
        find_source({"dataset_id": "d1"})
    text = str(error.value)
    assert "SignatureDoesNotMatch: for *** with ***" in text and KEY not in text and SECRET not in text
    assert without_secrets("http://me:pass@host/x") == "http://***@host/x"


def test_weights_of_a_store(server: FaultyServer) -> None:
    new_client().put_object(Bucket=BUCKET, Key="runs/1/net.th", Body=b"weights")
    for place in ("runs/1", "runs/1/", "runs/1/net.th"):
        path = find_resume({"resume_path": f"s3://{BUCKET}/{place}", "model_name": "net"})
        assert Path(path).read_bytes() == b"weights"
    with pytest.raises(RequestError, match=f"resume_path: there is no object s3://{BUCKET}/runs/1/other.th; leave it"):
        find_resume({"resume_path": f"s3://{BUCKET}/runs/1/", "model_name": "other"})


def test_a_server_that_is_gone_for_a_while(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is dropped for a while; the pauses together outlast a restart of 20 seconds."""
    assert len(PAUSES_S) == 4 and sum(PAUSES_S) > 20
    monkeypatch.setattr(storage, "PAUSES_S", tuple(pause / 20 for pause in PAUSES_S))
    source = find_source({"dataset_id": "d1"})
    back = time.monotonic() + 1  # a twentieth of 20 seconds

    def gone(proxy: Proxy) -> bool:
        proxy.close_connection = True
        return time.monotonic() < back

    server.fault = gone
    folder = source.folder(lambda line: None)
    assert (folder / "train/images/2.JPG").read_bytes() == b"bb"
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,) * 4)
    back = time.monotonic() + 60
    with pytest.raises(RequestError, match=f"s3://{BUCKET}/sets/d1/train/: Connection was closed before we received"):
        find_source({"dataset_id": "d1"})
    server.fault = None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(
        RequestError, match=r"Could not connect to the endpoint URL.*; credentials, region and endpoint"
    ):
        find_source({"dataset_id": "d1"})


def test_a_slow_server(server: FaultyServer) -> None:
    def slow(proxy: Proxy) -> bool:
        time.sleep(0.3)
        return False

    server.fault = slow
    started = time.monotonic()
    find_source({"dataset_id": "d1"}).folder(lambda line: None)
    assert len(server.requests) == 8 and time.monotonic() - started > 0.6  # the objects side by side


def test_the_platforms_own_aiutils_is_used(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one is built in, it knows where a data set is, and its client has the access."""
    module = tmp_path / "built_in/aiUtils.py"
    module.parent.mkdir()
    module.write_text(
        "import boto3\n\n\nclass aiUtils:\n    class s3GetImg:\n        def __init__(self, datasetId=None):\n"
        f"            self.path = f's3://{BUCKET}/sets/{{datasetId[:2]}}/'\n"
        f"            self.s3 = boto3.client('s3', endpoint_url='{server.url}')\n"
    )
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.delenv("PIE_DATASET_ROOT")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nothing is there
    try:
        with pytest.raises(RequestError, match='the platform\'s aiUtils cannot open the data set ""'):
            find_source({})
        assert find_source({"dataset_id": "d1-with-more"}).name == f"s3://{BUCKET}/sets/d1/"
        values = {"dataset_id": "d1", "model_name": "1", "resume_path": f"s3://{BUCKET}/sets/d1/train/images/1.jpg"}
        assert Path(find_resume(values)).read_bytes() == b"a"  # start weights, too
    finally:
        sys.modules.pop("aiUtils", None)
