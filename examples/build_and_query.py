"""Build a map of a folder of pictures and ask where another picture was taken.

python examples/build_and_query.py PICTURES MAP QUERY
"""

import sys

import pairvpr


def main(pictures: str, db: str, query: str) -> None:
    """Build the map `db`, or add the pictures that it lacks, and print the best five matches of `query`."""
    report = pairvpr.build_map(pictures, db)
    print(f"{report.added} pictures added, {len(report.skipped)} skipped")

    with pairvpr.PlaceRecognizer.open(db) as recognizer:
        answer = recognizer.recognize(query)

    for match in answer.matches[:5]:
        print(f"{match.name}  score {match.score:.2f}  similarity {match.similarity:.3f}  pose {match.pose}")
    print("accepted" if answer.accepted else f"do not act on this: {answer.reason}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pairvpr.PairVPRError as error:
        sys.exit(str(error))
