"""Move the modules of moves.txt and rewrite every reference. Run in a clean checkout."""
import re, subprocess, sys
from pathlib import Path
ROOT = Path.cwd()
def git(*a): return subprocess.run(["git", *a], check=True, capture_output=True, text=True).stdout
moves = {}
for line in Path("rename/moves.txt").read_text().splitlines():
    a, b = line.split()
    if (ROOT/a).exists(): moves[a] = b
    else: print("missing", a)
PACKAGES = {
 "engine/protocol": "What crosses the pipe between the worker and the engine process.",
 "engine/core": "The engine loop, its scheduler and the threads that feed it. No torch.",
 "engine/text": "Requests to token ids, and token ids back to text.",
 "engine/sampling": "Logits to tokens: parameters, logits processors, sampler, beam search.",
 "engine/kv_cache": "Where the keys and values of running sequences are kept, and how much room there is.",
 "engine/attention": "Attention to cached keys and values, plugged into the models of transformers.",
 "engine/runners": "Forward passes: decoder-only, encoder-decoder, and how a step is executed.",
 "engine/backends": "What runs a model: in flight, `model.generate`, vLLM, CTranslate2, and a fake.",
 "engine/cpu": "What is compiled for a CPU; everything here has a plain torch counterpart. See README.md.",
 "engine/cpu/kernels": "The compiled loops themselves.",
 "worker/celery": "The seam to Celery: the pool, the task, and the mends of kombu. Nothing else knows Celery.",
 "worker/dispatcher": "Publishes what the database says is due; one dispatcher among the workers leads.",
 "cli/commands": "The commands, one module each.",
 "cli/stack": "Processes of this machine: what `tidemill up` starts and stops.",
 "cli/output": "What commands print: tables, progress bars, JSON, CSV, Parquet.",
}
dotted = lambda p: p.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
mods = {dotted(a): dotted(b) for a, b in moves.items() if not a.rpartition("/")[2].startswith("test_")}
# do the moves; a module that becomes a package of the same name goes by way of a temporary name
tmp = {}
for a, b in moves.items():
    t = a + ".moving"
    git("mv", a, t); tmp[t] = b
for t, b in tmp.items():
    Path(b).parent.mkdir(parents=True, exist_ok=True)
    git("mv", t, b)
for pkg, doc in PACKAGES.items():
    f = Path(pkg)/"__init__.py"
    if not f.exists():
        f.write_text(f'"""{doc}"""\n'); git("add", str(f))
names = sorted(mods, key=len, reverse=True)
alt = "|".join(re.escape(n) for n in names)
# in imports, quotes and backticks, and after -m / -c import
dot_re = re.compile(r"(?P<pre>(?:^|\n)\s*(?:from|import) |[\"'`]|-m |import )(?P<name>%s)(?![\w])" % alt)
path_re = re.compile("(?<![\\w/])(%s)" % "|".join(re.escape(n) for n in sorted(moves, key=len, reverse=True)))
parents = sorted({n.rpartition(".")[0] for n in mods if "." in n}, key=len, reverse=True)
TOP = {"worker", "cli", "worker.engine", "db.queries", "tasks", "cli.sources"}
def fix_from(text, path):
    """from PKG import module[, module]"""
    out = text
    pat = re.compile(r"^(?P<ind>[ ]*)from (?P<pkg>%s) import (?P<what>\([^)]*\)|[^\n(]+)$" % "|".join(re.escape(p) for p in sorted(TOP, key=len, reverse=True)), re.M)
    renames = {}
    def sub(m):
        what = m["what"].strip("()")
        comment = ""
        items = [w.strip() for w in what.replace("\n", " ").split(",") if w.strip()]
        lines, keep = [], []
        for it in items:
            base, _, al = it.partition(" as ")
            full = f"{m['pkg']}.{base}"
            if full in mods:
                new = mods[full]; np, _, nb = new.rpartition(".")
                lines.append((np, nb + (f" as {al}" if al else "")))
                if not al and nb != base: renames[base] = nb
            else: keep.append(it)
        if not lines: return m.group(0)
        res = []
        if keep: res.append(f"{m['ind']}from {m['pkg']} import {', '.join(keep)}")
        by = {}
        for p, n in lines: by.setdefault(p, []).append(n)
        for p, ns in by.items(): res.append(f"{m['ind']}from {p} import {', '.join(ns)}")
        return "\n".join(res)
    out = pat.sub(sub, out)
    for b, nb in renames.items():
        out = re.sub(r"(?<![\w.\"'])%s(?=[.,)\]])" % b, nb, out)
        print("usage", path, b, "->", nb)
    return out
compiled_re = re.compile(r"compiled\(\"(\w+)\"\)")
base_map = {}
for a, b in moves.items():
    if a.startswith("worker/engine/"):
        base_map[a.rpartition("/")[2]] = b.removeprefix("engine/")
    elif a.startswith("worker/"): base_map.setdefault(a.rpartition("/")[2], b.removeprefix("worker/"))
back = {b: a for a, b in moves.items()}
bb = re.compile(r"`(?:worker/)?(%s)`" % "|".join(re.escape(x) for x in base_map if x not in ("__init__.py",)))
for f in git("ls-files").split("\n"):
    if not f or f.startswith("examples/models") or not Path(f).is_file(): continue
    if Path(f).suffix not in {".py",".md",".toml",".yml",".yaml",".cfg",".txt",".mako",""} : continue
    try: text = Path(f).read_text()
    except UnicodeDecodeError: continue
    old = text
    if f.endswith(".py"): text = fix_from(text, f)
    text = dot_re.sub(lambda m: m["pre"] + mods[m["name"]], text)
    text = path_re.sub(lambda m: moves[m[1]], text)
    text = text.replace("worker/engine", "engine") if not f.endswith(".py") else text.replace('"worker.engine"', '"engine"').replace("worker/engine/", "engine/")
    text = re.sub(r"-m worker\.engine", "-m engine", text)
    text = re.sub(r"(?<![\w.])(worker\.engine\.\w+)", lambda m: mods.get(m[1], m[1]), text)
    text = compiled_re.sub(lambda m: 'compiled("%s")' % (mods.get("worker.engine."+m[1], "engine.cpu."+m[1]).removeprefix("engine.cpu.")), text)
    text = text.replace('f"worker.engine.{name}"', 'f"engine.cpu.{name}"')
    if f.startswith("docs/decisions") or f in ("docs/performance.md", "docs/reliability.md", "docs/architecture.md"):
        text = bb.sub(lambda m: "`" + base_map[m[1]] + "`", text)
    if f in back:
        d = f.count("/") - back[f].count("/")
        if d: text = re.sub(r"parents\[(\d+)\]", lambda m: f"parents[{int(m[1])+d}]", text) if f.startswith("tests/") else text
    if text != old: Path(f).write_text(text)
