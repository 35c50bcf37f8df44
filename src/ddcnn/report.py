from pathlib import Path
def write_report(run: Path, show: bool = True) -> None:
    print("report")
