"""Tools that ask services, as agents call them: through a daemon, its sandbox and its proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from aiosd.abi.cores import ListCores
from aiosd.abi.process import RegisterAgent
from aiosd.abi.tools import ExecuteTool
from tests.agents.recorded import Recorded
from tests.conftest import World
from tests.daemon import ROOT, Client, Daemon
from tests.sandbox.boxes import needs_layers

pytestmark = needs_layers

CONFIG = """
[tools]
packages = ["wikipedia", "words", "labels", "restoring"]
[tools.settings]
wikipedia_query = {{WIKIPEDIA_URL = "{url}", SERVICE_TIMEOUT = "60"}}
words_api = {{WORDS_API_URL = "{url}"}}
[tools.needs]
wikipedia_query = {{network = ["{host}"]}}
"""


@pytest.fixture(scope="module")
def service() -> Iterator[Recorded]:
    with Recorded() as service:
        yield service


@pytest.fixture(scope="module")
def places(world: World) -> Path:
    """The state directory of the daemon."""
    state_dir = world.make(must_end_empty=False)
    world.state_dirs.append(state_dir)
    return state_dir


@pytest.fixture(scope="module")
def agent(world: World, places: Path, service: Recorded) -> Iterator[Client]:
    """An agent of a daemon that has these tools."""
    state_dir = places
    secrets = state_dir / "secrets.toml"
    secrets.write_text('RAPIDAPI_KEY = "a-key-of-the-kernel"\n')
    secrets.chmod(0o600)
    config = CONFIG.format(url=service.url, host=service.url.removeprefix("http://"))
    others = [world.make(must_end_empty=True) for _ in range(2)]
    daemon = Daemon(state_dir, *others, config=config)
    daemon.environ["PYTHONPATH"] = f"{ROOT}:{ROOT}/sdk"  # also where the checkout is not installed
    with daemon, daemon.connect() as client:
        client.call(RegisterAgent(name="asker"))
        yield client


def test_a_service_is_asked_through_the_proxy(agent: Client, service: Recorded) -> None:
    page = {"title": "A", "index": 1, "fullurl": "https://a.example/", "extract": "B."}
    service.json("/w/api.php", {"batchcomplete": True, "query": {"pages": [page]}})
    result = agent.call(ExecuteTool("wikipedia_query", {"query": "letters"}))
    assert result.value == [{"title": "A", "url": "https://a.example/", "text": "B."}]
    service.json("/w/api.php", {}, 429, Retry_After="9")
    with pytest.raises(OSError, match=r"wikipedia_query: Wikipedia has had .*again in 9 s"):
        agent.call(ExecuteTool("wikipedia_query", {"query": "letters"}))


def test_a_host_that_is_not_among_its_needs_is_not_reached(
    agent: Client, service: Recorded
) -> None:
    service.asked.clear()
    with pytest.raises(OSError, match="WordsAPI can't be reached: aiosd: ") as caught:
        agent.call(ExecuteTool("words_api", {"word": "lovely"}))
    assert not service.asked
    assert "a-key-of-the-kernel" not in str(caught.value)


def test_models_in_their_boxes_get_pictures_and_give_some_back(agent: Client, places: Path) -> None:
    with pytest.raises(OSError, match=r"argument image: photo\.png: No such file"):
        agent.call(ExecuteTool("image_classification", {"image": "photo.png"}))
    (space,) = (places / "tools").glob("agent-*")
    Image.fromarray(data.camera()[::4, ::4]).save(space / "photo.png")
    kinds = agent.call(ExecuteTool("image_classification", {"image": "photo.png", "top": 1}))
    assert [kind["label"] for kind in kinds.value] == ["fit for all"]
    made = agent.call(ExecuteTool("image_denoising", {"image": "photo.png", "sigma": 20}))
    assert made.value == {"artefact": "photo-denoised.png"}
    with Image.open(space / "photo-denoised.png") as picture:
        assert picture.size == (128, 128)
    rows = {core.name: core for core in agent.call(ListCores())}
    assert rows["tool:image_classification"].slots == 16
    assert rows["tool:image_denoising"].state == "ready"
    assert rows["tool:image_denoising"].rss > 1 << 20
