"""Answer the newest frame of a camera within a deadline, and act on accepted answers only.

python examples/live_camera.py MAP cam0
"""

import sys

import pairvpr
from pairvpr.runtime import open_source

DEADLINE_MS = 200.0


def main(db: str, camera: str) -> None:
    """Recognise the frames of `camera` (or of a video, bag or folder) in the map `db` until it ends."""
    with (
        pairvpr.PlaceRecognizer.open(db, budget_ms=DEADLINE_MS) as recognizer,
        open_source(camera) as source,
    ):
        for frame in source:
            recognizer.refresh()  # another process may have added pictures to the map
            answer = recognizer.recognize_frame(frame)
            if answer.error is not None:
                print(f"{answer.query}: {answer.error}")
            elif answer.accepted:
                print(f"{answer.query}: at {answer.best.pose}, confidence {answer.confidence:.2f}")
            else:
                print(f"{answer.query}: maybe {answer.best.name}, {answer.compared} compared; {answer.reason}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except pairvpr.PairVPRError as error:
        sys.exit(str(error))
