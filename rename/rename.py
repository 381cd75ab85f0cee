import re, subprocess
from pathlib import Path
files = subprocess.run(["git","ls-files","*.py","*.md"],capture_output=True,text=True).stdout.split()
rules=[]
for line in Path("rename/renames.txt").read_text().splitlines():
    if not line or line.startswith("#"): continue
    scope, rx, rep = [x.strip() for x in line.split(" | ")]
    rules.append((tuple(scope.split()), re.compile(rx), rep))
for f in files:
    if f.startswith(("examples/models",)) or f=="CHANGELOG.md": continue
    p=Path(f); t=o=p.read_text()
    for scope, rx, rep in rules:
        if f.startswith(scope) and f.endswith(".py"): t=rx.sub(rep,t)
    if t!=o: p.write_text(t)
