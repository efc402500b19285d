"""docker-compose.yml and the Dockerfile: what is promised of every container."""

import re
import shutil
import subprocess
from typing import Any

import pytest

from nsa_serve import __version__
from tests.support.deploying import COMPOSE, DOCKERFILE, GRAFANA, PROMETHEUS, ROOT, load_yaml

SERVICES: dict[str, dict[str, Any]] = load_yaml(COMPOSE)["services"]
SERVERS = ("server-cpu", "server-gpu")


def test_what_there_is() -> None:
    assert set(SERVICES) == {*SERVERS, "prometheus", "grafana"}
    assert [SERVICES[name]["profiles"] for name in SERVERS] == [["cpu"], ["gpu"]]


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert not service.get("privileged")
    assert all(entry.startswith("/tmp:") for entry in service["tmpfs"])
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-cpu|-gpu)?", tag)
    if name in SERVERS:
        assert tag.startswith(f"{__version__}-")
        assert SERVICES[name]["build"]["target"] == name.removeprefix("server-")


def test_folders_that_are_mounted_are_there_and_cannot_be_written() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service["volumes"]]
    own = [mount for mount in mounts if mount.startswith("./")]
    assert len(own) == 3
    for mount in own:
        path, _, rest = mount.partition(":")
        assert (ROOT / path).is_dir()
        assert rest.endswith(":ro")


def test_no_secret_is_in_a_file() -> None:
    for path in (COMPOSE, DOCKERFILE, *PROMETHEUS.rglob("*.*"), *GRAFANA.rglob("*.*")):
        assert not re.search(
            r"(?i)(password|secret|token|api_?key)\"?\s*[:=]\s*\S*[\"'\w]{6}", path.read_text()
        ), path
    for name in (*SERVERS, "prometheus"):
        assert SERVICES[name]["environment"]["NSA_SERVE_API_KEY"] is None  # passed on as it is


def test_the_stop_is_longer_than_the_drain() -> None:
    for name in SERVERS:
        command, grace = SERVICES[name]["command"], SERVICES[name]["stop_grace_period"]
        drain = re.search(r"--shutdown-timeout (\d+)", command)
        assert drain is not None
        assert int(grace.removesuffix("s")) > int(drain[1]) + 2


def test_the_server_takes_its_command_line() -> None:
    from typer.main import get_command

    from nsa_serve.cli.app import app

    command = SERVICES["server-cpu"]["command"].replace("${NSA_SERVE_ARGS:-}", "").split()
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = serve.make_context("serve", command[1:])
    assert context.params["host"] == "0.0.0.0"
    assert context.params["log_format"] == "json"


def test_the_image_has_all_that_the_wheel_is_made_of() -> None:
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert {"nsa_serve", "kernels", "scheduler", "api", "pyproject.toml"} <= sources
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_images_of_the_dockerfile_are_pinned_and_run_without_rights() -> None:
    text = DOCKERFILE.read_text()
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.search(r":\d+\.\d+\.\d+-", image)
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(bases) <= {"${PYTHON_IMAGE}", "base"}
    for target in ("cpu", "gpu"):
        stage = text.split(f"FROM base AS {target}\n")[1].split("\nFROM ")[0]
        assert stage.rstrip().endswith("USER 10001:10001")


def test_compose_itself_takes_the_file() -> None:
    command = _compose()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    for profile in ("cpu", "gpu"):
        arguments = [*command, "--file", str(COMPOSE), "--profile", profile]
        done = subprocess.run([*arguments, "config", "--services"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        services = set(done.stdout.split())
        assert f"server-{profile}" in services
        assert {"prometheus", "grafana"} <= services


def _compose() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run([*command, "version"], capture_output=True)
            if version.returncode == 0:
                return command
    return None
