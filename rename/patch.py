from pathlib import Path
def sub(f, a, b, n=1):
    p = Path(f)
    if not p.exists(): print("patch: no file", f); return
    t = p.read_text()
    if a not in t: print("patch: no match in", f, "::", a[:60]); return
    p.write_text(t.replace(a, b))
sub("engine/cpu/thread_pool.py", '''OF_COMPILED = b"engine.compiled import", b"engine.words import"  # in whose files it says so

''', '')
sub("engine/cpu/thread_pool.py", '''    """Of all that is compiled into one another. What numba keeps on disk it takes for good until
    the file of a function changes; those of the functions that it calls it does not look at."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_bytes()
        if path.name == Path(__file__).name or any(each in source for each in OF_COMPILED):
            digest.update(source)
    return digest.hexdigest()[:16]''', '''    """Return a digest of every source file of this package, part of the cache's folder name.

    numba invalidates a cached function when its own file changes, and does not look at the files
    of the functions that are compiled into it.
    """
    digest = sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]''')
sub("tests/unit/engine/cpu/test_thread_pool.py", '''        root / "worker", tmp_path / "worker", ignore''', '''        root / "engine", tmp_path / "engine", ignore''')
sub("tests/unit/engine/cpu/test_thread_pool.py", '''copied / "engine" / "kernel.py"''', '''copied / "cpu" / "kernels" / "decode_attention.py"''')
sub("tests/unit/cli/test_main.py", '''    names = [path.stem for path in Path(__file__).parents[3].joinpath("cli").glob("*.py")]
    imports = ", ".join(f"cli.{name}" for name in names if name not in ("__main__", "__init__"))
''', '''    root = Path(__file__).parents[3]
    files = [path.relative_to(root).with_suffix("") for path in root.joinpath("cli").rglob("*.py")]
    imports = ", ".join(
        ".".join(file.parts) for file in files if file.stem not in ("__main__", "__init__")
    )
''')
sub("Dockerfile", "COPY db db\n", "COPY db db\nCOPY engine engine\n")
sub("cli/stack/celery_main.py", '"""`python -P -m cli.stack.celery_main ARGUMENTS`: Celery\'s own command line, with our packages first.', '"""`python -P -m cli.stack.celery_main`: Celery\'s own command line, our packages first.')
sub("engine/cpu/optional.py", 'f"engine.{name}"', 'f"engine.cpu.{name}"')
sub("tests/unit/test_compose.py", '{"cli", "db", "tasks", "worker"}', '{"cli", "db", "engine", "tasks", "worker"}')
