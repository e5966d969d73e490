from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.serving import RunningService, serving, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def service(page: Path) -> Iterator[RunningService]:
    with serving(page, "--max_body_mb", 1, "--max_picture_mb", 1, "--max_megapixels", 1, "--max_pictures", 4) as one:
        yield one
