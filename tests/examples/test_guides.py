"""The pages of examples/: what they say to type works, and both languages say the same."""

import re

import pytest
import yaml
from conftest import AGENTS
from toolbox import EXAMPLES, KEY

ROOT = EXAMPLES.parent
PAGES = [EXAMPLES, EXAMPLES / "clients"]
CLIENTS = ["Open WebUI", "LobeChat", "NextChat", "Cherry Studio", "AstrBot", "LangBot"]


def page(folder, name="README.md") -> str:
    return (folder / name).read_text("utf-8")


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
@pytest.mark.parametrize("folder", PAGES)
def test_links_lead_somewhere(folder, name):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page(folder, name))
    assert targets
    for target in targets:
        assert (folder / target).exists(), target


def test_every_example_is_in_the_list():
    listed = re.findall(r"^\| \[[^]]+\]\(([\w-]+)\)", page(EXAMPLES), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", PAGES)
def test_both_languages_have_the_same_commands_values_and_links(folder):
    english, chinese = page(folder), page(folder, "README.zh-CN.md")
    for pattern in (r"(?<!`)`([^`\n]+)`(?!`)", r"\]\(((?!README)[^)]+)\)", r"\n#+ "):
        found = [sorted(re.findall(pattern, text)) for text in (english, chinese)]
        if pattern.startswith("(?<"):
            found = [sorted(set(one)) for one in found]
        assert found[0] == found[1], pattern
    blocks = [
        re.sub(r"\s*#.*", "", "".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)))
        for text in (english, chinese)
    ]
    assert blocks[0] == blocks[1]


def sections() -> dict[str, str]:
    """What the page says of each client."""
    parts = re.split(r"^## (.+)\n", page(EXAMPLES / "clients"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_clients_address_leads_to_the_models_and_chats(gateway, demo, client):
    """Clients append `/models` to an address that ends in /v1, else `/v1/models`."""
    (address,) = set(re.findall(r"\| `(http://[^`]+)`", sections()[client]))
    path = re.fullmatch(r"http://(?:localhost|host\.docker\.internal):3000(/v1)?", address)[1] or ""
    prefix = path or "/v1"
    keys = [{"name": "client", "key": KEY}]
    agents = {"dify": {**AGENTS["dify"], "base_url": (await demo("dify")).url}}
    gw = await gateway(agents=agents, auth={"anonymous": False, "keys": keys})
    headers = {"Authorization": f"Bearer {KEY}", "Host": address.split("/")[2]}
    async with gw.get(f"{prefix}/models", headers=headers) as answer:
        assert [model["id"] for model in (await answer.json())["data"]] == ["dify"]
    body = {"model": "dify", "messages": [{"role": "user", "content": "hi"}]}
    async with gw.post(f"{prefix}/chat/completions", body, headers=headers) as answer:
        assert answer.status == 200


def test_every_client_has_a_section_with_an_address_and_a_key():
    said = sections()
    assert list(said)[1:] == CLIENTS
    for client in CLIENTS:
        assert "`sk-gw-…`" in said[client], client
        assert re.search(
            r"checked with version [\d.]+\.|By its documentation of \d{4}\.", said[client]
        )


def test_open_webui_joins_the_compose_file():
    base = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    more = yaml.safe_load((EXAMPLES / "clients/open-webui.yml").read_text("utf-8"))
    (service,) = more["services"].values()
    address = re.fullmatch(r"http://(\w+):(\d+)/v1", service["environment"]["OPENAI_API_BASE_URL"])
    gateway = base["services"][address[1]]
    assert gateway["environment"]["PORT"] == address[2]
    assert set(service["networks"]) <= set(gateway["networks"]) & set(base["networks"])
    assert not base["networks"]["outside"]  # the way out of its containers is open
    assert more["volumes"].keys() == {service["volumes"][0].split(":")[0]}
    assert more["services"].keys() & base["services"].keys() == set()
