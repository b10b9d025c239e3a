"""What `deploy/` ships is valid for what reads it: Ray's launcher, Kubernetes, KubeRay, and our own command line."""

import copy
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from esper_ray.cli.main import _parse
from esper_ray.errors import EsperError
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.placement import _gpu_share

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES_VERSION = "1.33"
KUBERAY = jsonschema.Draft202012Validator(json.loads((Path(__file__).parent / "kuberay_schema.json").read_text()))
FREE = {"labels", "limits", "requests", "rayStartParams", "file_mounts", "available_node_types"}
"""Mappings whose keys are the user's: any name is right there."""

Place = tuple[str | int, ...]


def cluster_file() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "cluster.yaml").read_text())


def cloud_file() -> dict[str, Any]:
    """Returns the cluster file with its alternative for rented machines: the lines that begin "#key" or "#  "."""
    lines = re.findall(r"^#((?:[a-z_]+:|  ).*)$", (DEPLOY / "cluster.yaml").read_text(), re.MULTILINE)
    return cluster_file() | yaml.safe_load("\n".join(lines))


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def ray_job() -> dict[str, Any]:
    (job,) = [manifest for manifest in manifests() if manifest["kind"] == "RayJob"]
    return job


def groups() -> list[dict[str, Any]]:
    """Returns the job's head group and worker groups."""
    cluster = ray_job()["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def require_cluster_file(config: dict[str, Any]) -> None:
    """Refuses what `ray up` would, with the schema in Ray's wheel; closed and typed where that lets anything pass."""
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    text = {"type": "string"}
    provider = schema["properties"]["provider"]
    provider["additionalProperties"] = False
    provider["properties"]["external_head_ip"] = text
    provider["properties"]["worker_ips"]["items"] = text
    schema["properties"]["file_mounts"]["additionalProperties"] = text
    schema["properties"]["rsync_exclude"]["items"] = text
    jsonschema.validate(config, schema)
    validate_config(prepare_config(copy.deepcopy(config)))


def require_manifest(manifest: dict[str, Any]) -> None:
    """Refuses what the Kubernetes API would, for our kinds: fields and types, down to every container."""
    if not str(manifest.get("apiVersion")).startswith("ray.io/"):
        require_of_kubernetes(manifest)
        return
    KUBERAY.validate(manifest)
    require_of_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "metadata": manifest["metadata"]})
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        require_of_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]})


def require_of_kubernetes(manifest: dict[str, Any]) -> None:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    except (KeyError, AttributeError, TypeError, kubernetes_validate.SchemaNotFoundError) as error:
        raise jsonschema.ValidationError(f"apiVersion or kind is missing or unknown: {error}") from error


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yields the path of everything inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key)
        yield from places(item, (*at, key))


def inside(document: Any, place: Place) -> Any:
    for key in place:
        document = document[key]
    return document


def changed(document: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(document)
    inside(other, place[:-1])[place[-1]] = value
    return other


def misspelt(document: dict[str, Any], place: Place) -> dict[str, Any]:
    other = copy.deepcopy(document)
    mapping = inside(other, place[:-1])
    mapping[f"{place[-1]}x"] = mapping.pop(place[-1])
    return other


def typed(document: dict[str, Any]) -> list[Place]:
    """Returns the places whose values a schema knows: all but what a cloud is told about its machines."""
    return [place for place in places(document) if "node_config" not in place[:-1]]


def named(document: dict[str, Any]) -> list[Place]:
    """Returns the places whose keys a schema knows: not the user's own, such as Ray's names of resources."""
    rays = [(kind, "resources") for kind in document.get("available_node_types", {})]
    known = [place for place in typed(document) if isinstance(place[-1], str)]
    return [place for place in known if not FREE.intersection(place[-2:-1]) and place[-3:-1] not in rays]


def two(places: list[Place]) -> list[Place]:
    """Returns one place at the top and one at the very bottom."""
    return [min(places, key=len), max(places, key=len)]


def wrong_type(document: dict[str, Any], place: Place) -> dict[str, Any]:
    return changed(document, place, "wrong" if isinstance(inside(document, place), dict) else {"wrong": "type"})


def dotted(place: Any) -> str | None:
    return ".".join(map(str, place)) if isinstance(place, tuple) else None


def commands_in(text: str) -> list[list[str]]:
    """Returns the command lines of a text of shell lines, without comments; `A -- B` and "A 'B'" give B as well."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        found.append(words)
        found += [shlex.split(word) for word in words if " " in word]
        found += [words[words.index("--") + 1 :]] if "--" in words else []
    return found


def commands_of(program: str) -> list[list[str]]:
    """Returns the command lines that begin with `program`, of the page, the manifest and the cluster file."""
    page, cluster = ((DEPLOY / name).read_text() for name in ("README.md", "cluster.yaml"))
    config = cluster_file()
    lines = [
        *re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE),
        *re.findall(rf"`({program} [^`\s]+ [^`\n]+)`", page + cluster),
        ray_job()["spec"]["entrypoint"],
        *(re.sub(r"^\w+=\S+ ", "", command) for command in config["head_start_ray_commands"]),
        *config["worker_start_ray_commands"],
    ]
    found = {tuple(words) for words in commands_in("\n".join(lines)) if words[0] == program}
    return sorted(map(list, found))


def test_the_cluster_file_is_one_for_rays_launcher() -> None:
    require_cluster_file(cluster_file())


def test_the_alternative_for_rented_machines_is_one_too() -> None:
    config = cloud_file()
    assert config["provider"]["type"] == "aws"
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    require_cluster_file(config)


@pytest.mark.parametrize("place", two(named(cluster_file())), ids=dotted)
def test_a_misspelt_key_of_the_cluster_file_is_refused(place: Place) -> None:
    with pytest.raises((jsonschema.ValidationError, click.ClickException)):
        require_cluster_file(misspelt(cluster_file(), place))


@pytest.mark.parametrize("place", two(typed(cluster_file())), ids=dotted)
def test_a_wrong_type_in_the_cluster_file_is_refused(place: Place) -> None:
    with pytest.raises(jsonschema.ValidationError):
        require_cluster_file(wrong_type(cluster_file(), place))


@pytest.mark.parametrize("place", two(named(cloud_file())), ids=dotted)
def test_a_misspelt_key_of_the_alternative_is_refused(place: Place) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        require_cluster_file(misspelt(cloud_file(), place))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("head_node_type",), "heads"),
        (("max_workers",), 1),
        (("available_node_types", "gpu", "resources", "GPU"), 0.5),
        (("available_node_types", "gpu", "min_workers"), "2"),
    ],
)
def test_numbers_and_names_of_the_alternative_have_to_agree(place: Place, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        require_cluster_file(changed(cloud_file(), place, value))


def test_the_manifests_are_valid_for_kubernetes_and_kuberay() -> None:
    KUBERAY.check_schema(KUBERAY.schema)
    assert [manifest["kind"] for manifest in manifests()] == ["PersistentVolumeClaim", "RayJob"]
    for manifest in manifests():
        require_manifest(manifest)


def test_the_jobs_cluster_would_do_on_its_own_too() -> None:
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "esper-ray"},
        "spec": ray_job()["spec"]["rayClusterSpec"],
    }
    KUBERAY.validate(cluster)
    with pytest.raises(jsonschema.ValidationError):
        KUBERAY.validate(changed(cluster, ("spec", "entrypoint"), "esper-ray train"))


@pytest.mark.parametrize(
    ("index", "place"),
    [(index, place) for index, manifest in enumerate(manifests()) for place in two(named(manifest))],
    ids=dotted,
)
def test_a_misspelt_key_of_a_manifest_is_refused(index: int, place: Place) -> None:
    with pytest.raises(jsonschema.ValidationError):
        require_manifest(misspelt(manifests()[index], place))


@pytest.mark.parametrize(
    ("index", "place"),
    [(index, place) for index, manifest in enumerate(manifests()) for place in two(typed(manifest))],
    ids=dotted,
)
def test_a_wrong_type_in_a_manifest_is_refused(index: int, place: Place) -> None:
    with pytest.raises(jsonschema.ValidationError):
        require_manifest(wrong_type(manifests()[index], place))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("apiVersion",), "ray.io/v1alpha1"),
        (("kind",), "RayJobs"),
        (("spec", "submissionMode"), "K8SJobMode"),
        (("spec", "ttlSecondsAfterFinished"), "3600"),
        (("spec", "shutdownAfterJobFinishes"), "true"),
        (("spec", "rayClusterSpec", "rayVersion"), 2.6),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "2"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), -1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "env", 0, "value"), 1),
    ],
)
def test_a_nearly_right_value_is_refused(place: Place, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        require_manifest(changed(ray_job(), place, value))


@pytest.mark.parametrize("words", commands_of("esper-ray"), ids=" ".join)
def test_our_commands_have_flags_that_exist(words: list[str]) -> None:
    _parse(words[1:])


@pytest.mark.parametrize("words", commands_of("ray"), ids=" ".join)
def test_rays_commands_have_flags_that_exist(words: list[str]) -> None:
    ray_cli.commands[words[1]].make_context(words[1], words[2:])


def test_a_command_with_a_flag_that_does_not_exist_would_be_noticed() -> None:
    assert {words[1] for words in commands_of("esper-ray")} == {"train", "report"}
    assert {words[1] for words in commands_of("ray")} >= {"get-auth-token", "up", "exec", "submit", "start", "stop"}
    with pytest.raises(EsperError, match="unknown flag '--runner'"):
        _parse(["train", "--runner", "8"])
    with pytest.raises(click.UsageError):
        ray_cli.commands["start"].make_context("start", ["--head", "--autoscaler-config=x"])


def test_the_runners_of_the_job_fit_on_its_groups() -> None:
    config = _parse(shlex.split(ray_job()["spec"]["entrypoint"])[1:])
    assert isinstance(config, TrainConfig)
    assert config.runners is not None
    nodes = []
    for group in ray_job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        nodes += [{"CPU": limits["cpu"], "GPU": limits.get("nvidia.com/gpu", 0)}] * group["replicas"]
    with_gpus = [node for node in nodes if node["GPU"]]
    assert config.runners == sum(node["CPU"] for node in with_gpus)
    assert _gpu_share(config.runners, with_gpus) == 1 / 4


def test_the_run_folder_is_on_the_shared_volume_in_every_pod() -> None:
    config = _parse(shlex.split(ray_job()["spec"]["entrypoint"])[1:])
    assert isinstance(config, TrainConfig)
    assert config.out is not None
    (claim,) = [manifest["metadata"]["name"] for manifest in manifests() if manifest["kind"] == "PersistentVolumeClaim"]
    for group in groups():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts[str(config.out.parent)]["persistentVolumeClaim"]["claimName"] == claim
        caches = [entry["value"] for entry in container.get("env", []) if entry["name"] == "ESPER_RAY_CACHE"]
        assert all("emptyDir" in mounts[cache] for cache in caches)


def test_every_pod_has_one_image_and_limits_that_it_asks_for() -> None:
    containers = [container for group in groups() for container in group["template"]["spec"]["containers"]]
    (image,) = {container["image"] for container in containers}
    assert f"-t {image} " in (DEPLOY / "README.md").read_text()
    assert all(container["resources"]["requests"] == container["resources"]["limits"] for container in containers)


def test_the_version_of_ray_is_the_pinned_one() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert ray_job()["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1] == ray.__version__


def test_machines_and_images_get_what_an_installation_needs() -> None:
    mounted = {path for path in cluster_file()["file_mounts"].values() if not path.startswith("~")}
    instructions = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    copied = {path for paths in instructions for path in paths.split()}
    assert (
        mounted == copied == {"esper_ray", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "tune_configs"}
    )
    assert all((ROOT / path).exists() for path in mounted)
