"""pyproject, Dockerfile etc. for a top-level engine package."""
import re
from pathlib import Path
p = Path("pyproject.toml"); t = p.read_text()
t = t.replace('packages = ["cli", "db", "tasks", "worker"]', 'packages = ["cli", "db", "engine", "tasks", "worker"]')
t = t.replace('packages = ["db", "tasks", "worker", "cli"]', 'packages = ["db", "tasks", "engine", "worker", "cli"]')
t = t.replace('module = ["tasks.*", "worker.*"]', 'module = ["engine.*", "tasks.*", "worker.*"]')
t = re.sub(r'module = \["(worker\.)?engine\.\*"\]', 'module = ["engine.*"]', t)
head, _, _ = t.partition("[tool.importlinter]")
t = head + '''[tool.importlinter]
root_packages = ["cli", "db", "engine", "tasks", "worker"]
include_external_packages = true

[[tool.importlinter.contracts]]
name = "imports point one way"
type = "layers"
layers = ["cli", "worker", "tasks", "db"]

[[tool.importlinter.contracts]]
name = "the engine knows nothing of ours"
type = "forbidden"
source_modules = ["engine"]
forbidden_modules = ["cli", "db", "tasks", "worker", "celery", "kombu", "sqlalchemy", "pydantic"]

[[tool.importlinter.contracts]]
name = "nothing but the engine imports torch"
type = "forbidden"
source_modules = ["cli", "db", "tasks", "worker"]
forbidden_modules = ["torch", "transformers"]

[[tool.importlinter.contracts]]
name = "the command line starts workers, it is none"
type = "forbidden"
source_modules = ["cli"]
forbidden_modules = ["worker"]

[[tool.importlinter.contracts]]
name = "db knows neither the queue nor the models"
type = "forbidden"
source_modules = ["db"]
forbidden_modules = ["celery", "kombu", "pydantic", "engine"]

[[tool.importlinter.contracts]]
name = "only worker.celery knows Celery's consumer"
type = "forbidden"
source_modules = ["worker"]
forbidden_modules = ["celery"]
allow_indirect_imports = true
ignore_imports = ["worker.celery.* -> celery"]
'''
p.write_text(t)
for f in ("Dockerfile", "docker-compose.yml", ".github/workflows/ci.yml"):
    q = Path(f)
    if q.exists():
        s = q.read_text()
        s = re.sub(r"COPY (.*)\bdb\b(.*)\bworker\b", r"COPY \1db\2engine worker", s) if "engine worker" not in s else s
        q.write_text(s)
q = Path(".gitignore"); print(q.read_text())
