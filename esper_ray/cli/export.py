"""`esper-ray export`: writes a grown host to files and prints their path."""

from esper_ray.orchestration.config import ExportConfig
from esper_ray.orchestration.run.export_run import export_run


def run_export(config: ExportConfig) -> int:
    """Exports, prints a summary of the export, and returns the exit code."""
    export = export_run(config)
    topology, test = export.topology, export.topology["test"]
    seed = topology["seed"]
    grown = f"a {seed['blueprint']} seed of {seed['parameters']:,} parameters" if seed else "no seed"
    print(
        f"Episode {export.episode}{', grown again from its record' if export.replayed else ''}: "
        f"{topology['host']['class']} of {topology['host']['parameters']:,} parameters with {grown} at "
        f"{topology['slot']['injection_point']}."
    )
    print(f"Test accuracy {test['accuracy']:.2f} %, loss {test['loss']:.4f} nats, {test['predictions']:,} predictions.")
    print(f"Written to {export.folder}; its model.py loads it with torch alone.")
    return 0
