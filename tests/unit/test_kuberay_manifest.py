"""``deploy/kuberay.yaml`` fits together: groups, volumes, places and the spec in it."""

from __future__ import annotations

import json
import re

import yaml

from raykeeper.proxy_address import read_listen_address
from raykeeper.spec import ClusterSpec
from rooms import ROOT

DOCUMENTS = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()))


def of_kind(kind: str) -> list[dict]:  # type: ignore[type-arg]
    return [each for each in DOCUMENTS if each["kind"] == kind]


def test_the_manifest_fits_together() -> None:
    [config], [cluster] = of_kind("ConfigMap"), of_kind("RayCluster")
    spec = ClusterSpec.load(yaml.safe_load(config["data"]["cluster.yaml"]))
    assert (spec.data_dir, spec.bootstrap, spec.proxy) == ("/raykeeper", "never", "all")
    listen = read_listen_address(spec.proxy_listen)
    assert listen is not None
    assert (listen.host, listen.first) == ("0.0.0.0", listen.last), "every address of the pod, and one port"
    groups = [group for group in cluster["spec"]["workerGroupSpecs"] if "resources" in group["rayStartParams"]]
    assert len(groups) == spec.members
    places, claims, names = [], [], set()
    for group in groups:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 1, "one pod for one volume"
        names.add(group["groupName"])
        places += json.loads(json.loads(group["rayStartParams"]["resources"]))
        pod = group["template"]["spec"]
        claims += [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]]
        [container] = pod["containers"]
        assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {"data": spec.data_dir}
        probe = container["readinessProbe"]["httpGet"]  # from outside of the pod, at its address
        assert (probe["path"], probe["port"]) == ("/readyz", listen.first)
        assert [each["containerPort"] for each in container["ports"]] == [listen.first]
        assert not spec.proxy_tls.cert_file, "a probe without scheme: HTTPS"
        assert "ray stop" in " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
        [selector] = [each["spec"]["selector"]["matchLabels"] for each in of_kind("PodDisruptionBudget")]
        assert selector.items() <= group["template"]["metadata"]["labels"].items()
    assert tuple(places) == spec.placement
    assert len(names) == spec.members
    assert claims == [each["metadata"]["name"] for each in of_kind("PersistentVolumeClaim")]
    other = [group for group in cluster["spec"]["workerGroupSpecs"] if group not in groups]
    assert all("volumes" not in group["template"]["spec"] for group in other)


def test_the_manifest_names_no_address_of_a_pod() -> None:
    text = (ROOT / "deploy" / "kuberay.yaml").read_text()
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) == {"0.0.0.0", "127.0.0.1"}
