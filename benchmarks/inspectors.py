"""What inspectors cost: the slider's answer in the browser, a live dashboard's share of training.

    python benchmarks/inspectors.py            # both
    python benchmarks/inspectors.py slider     # 500 rollouts of 64 tokens, in headless chromium
    python benchmarks/inspectors.py live       # thread that follows a run, beside the training
    python benchmarks/inspectors.py size       # bytes of code and of a notebook output

Slider: from the input event to the end of the frame that shows the new step, scripts and layout
included; 40 moves on 5 steps of 100 answers, and 40 on 2 steps of 250.
Live: processor time of the following thread (reading, parsing, sending a row) by wall time, with a
row every --iteration seconds, as a share of the iteration.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "inspectors"))

from made import WORDS, ppo_row, ppo_run, random, rollout

from course_utils.inspectors import MaskViewer, RewardKLDashboard, RolloutInspector, page

MOVES = """async ([steps, moves]) => {
  const range = document.querySelector('input[type=range]');
  const times = [];
  for (let i = 0; i < moves; i++) {
    const t = performance.now();
    range.value = i % steps;
    range.dispatchEvent(new Event('input', {bubbles: true}));
    await new Promise(r => requestAnimationFrame(r));   // the update runs in this frame ...
    document.body.getBoundingClientRect();              // ... and its layout is forced here
    times.push(performance.now() - t);
    await new Promise(r => setTimeout(r, 20));
  }
  return times;
}"""


def slider(folder: Path) -> dict[str, Any]:
    """Milliseconds from a slider's move to the drawn step."""
    import shutil

    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for steps in (5, 2):
            log = ppo_run(folder / f"s{steps}", steps, 1, answers=500 // steps, tokens=64)
            saved = RolloutInspector(log).save(folder / "page.html")
            opened = browser.new_page()
            opened.goto(saved.as_uri())
            opened.wait_for_selector(".token")
            times = sorted(opened.evaluate(MOVES, [steps, 40]))
            found[f"{steps} steps of {500 // steps}"] = {
                "median_ms": round(statistics.median(times), 1),
                "p95_ms": round(times[int(0.95 * len(times))], 1),
                "max_ms": round(times[-1], 1),
            }
        browser.close()
    return found


def live(folder: Path, iteration: float, steps: int) -> dict[str, Any]:
    """Processor time of following, as a share of the training's time."""
    from course_utils.training.run import RunLog

    rng = random.Random(0)
    shares = {}
    for kind in (RewardKLDashboard, RolloutInspector):
        log = RunLog.create(folder / kind.__name__, {"steps": steps}, 0)
        inspector = kind(log)
        sent: list[int] = []
        inspector.widget.send = lambda m, sent=sent: sent.append(len(json.dumps(m)))
        clock = {"cpu": 0.0}
        look = inspector._look

        def timed(look: Any = look, clock: Any = clock) -> int:
            began = time.thread_time()
            try:
                return look()
            finally:
                clock["cpu"] += time.thread_time() - began

        inspector._look = timed
        inspector.follow(every=0.5)
        began = time.perf_counter()
        for step in range(1, steps + 1):
            log.append(ppo_row(rng, step, steps))
            if kind is RolloutInspector and step % 10 == 0:
                made = [rollout(rng, f"q{i}", rng.choices(WORDS, k=40), 0.2) for i in range(16)]
                log.save_rollouts(step, made)
            time.sleep(iteration)
        wall = time.perf_counter() - began
        inspector.stop()
        shares[kind.__name__] = {
            "cpu_ms_per_iteration": round(1000 * clock["cpu"] / steps, 2),
            "share_of_wall": f"{100 * clock['cpu'] / wall:.2f}%",
            "increments": len(sent),
            "bytes_per_increment": round(statistics.mean(sent)) if sent else 0,
        }
    return {"iteration_s": iteration, "iterations": steps, **shares}


def size(folder: Path) -> dict[str, Any]:
    """Bytes of script and style, and of the HTML layer of a notebook output."""
    big = ppo_run(folder / "big", 100, 5, answers=20, tokens=64)
    found = {}
    for kind in (RolloutInspector, RewardKLDashboard, MaskViewer):
        shown = kind(big) if kind is not MaskViewer else None
        found[kind.__name__] = {
            "script": len(page.bundle(kind.module).encode()),
            "style": len(page.style(*kind.css).encode()),
            "output": len(shown.html().encode()) if shown else None,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", default=["slider", "live", "size"])
    parser.add_argument("--iteration", type=float, default=1.0, help="seconds (default 1.0)")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for which in arguments.which:
            if which == "slider":
                found = slider(folder)
            elif which == "live":
                found = live(folder, arguments.iteration, arguments.steps)
            else:
                found = size(folder)
            print(which, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
