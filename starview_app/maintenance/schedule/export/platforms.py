"""The platforms by name: how their files are made, and where they are committed."""

from dataclasses import dataclass

from starview_app.maintenance.schedule.export import kubernetes, render, systemd
from starview_app.maintenance.schedule.export.lines import (
    Export,
    Files,
    read_lines,
)

_KUSTOMIZATION = "kustomization.yaml"


@dataclass(frozen=True)
class Platform:
    export: Export
    folder: str  # relative to this repository

    def files(self, crontab: str) -> Files:
        """Make the files. Raises ExportError if the platform cannot express a line."""
        return self.export(read_lines(crontab))


PLATFORMS = {
    "render-worker": Platform(render.worker, "."),
    "render-cron": Platform(render.cron_jobs, "deploy"),
    "kubernetes": Platform(kubernetes.cron_jobs, "deploy/kubernetes"),
    "systemd": Platform(systemd.units, "deploy/systemd"),
}


def as_one_text(files: Files) -> str:
    """Join the files: manifests as `kubectl apply -f -` takes them, others with names.

    A single file is returned unchanged.
    """
    if len(files) == 1:
        return next(iter(files.values()))
    if _KUSTOMIZATION in files:
        texts = [text for name, text in files.items() if name != _KUSTOMIZATION]
        return "---\n".join(texts)
    return "\n".join(f"# --- {name}\n{text}" for name, text in files.items())
