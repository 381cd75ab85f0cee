set -e
git reset -q --hard; git clean -fdq
python3 rename/move.py > /dev/null; git add -A
python3 rename/rename.py; python3 rename/config.py >/dev/null
R=.venv/bin; $R/ruff check -q --fix . >/dev/null 2>&1 || true; $R/ruff format -q .
for p in rename/patch.py; do [ -e "$p" ] && python3 $p; done
$R/ruff check -q --fix . || true; $R/ruff format -q .; $R/ruff check . | tail -20
