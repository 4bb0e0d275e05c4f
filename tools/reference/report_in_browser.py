"""Opens a page of `primal report` in headless Chromium and checks what it shows.

Usage: python3 report_in_browser.py runs/small/report.html [picture.png]

Needs the program `chromium` (Debian package of that name). The page must parse to every plot with
drawn lines, its data must be JSON, it must ask the network for nothing, and no script may complain.
"""

import json
import re
import subprocess
import sys
from pathlib import Path


def main() -> None:
    page = Path(sys.argv[1]).resolve()
    picture = Path(sys.argv[2] if len(sys.argv) > 2 else "report.png").resolve()
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    # A host that is not there: a page that needs the network would look broken.
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,6000"]
    command += [f"--screenshot={picture}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    dom = done.stdout
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not complaints, complaints
    plots = re.findall(r"<svg.*?</svg>", dom, re.S)
    empty = [index for index, plot in enumerate(plots) if not re.search(r"<(polyline|rect|circle)", plot)]
    assert plots and not empty, f"plots {empty} of {len(plots)} are empty"
    data = json.loads(re.search(r'<script[^>]*id="data">(.*?)</script>', dom, re.S).group(1))
    assert not re.findall(r'(?:src|href)="(?!#|data:)', dom), "something outside the page"
    print(f"{len(plots)} plots, step {data['steps']}, {len(data['train_loss'])} points of loss; {picture}")


main()
