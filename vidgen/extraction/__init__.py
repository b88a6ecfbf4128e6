"""Dense optical flow of whole videos, from files to files: the command `vidgen flow`.

sources    what there is to compute: videos, and folders of frames, anywhere under a folder
outputs    where it goes: one folder of files, or one file, for each video; what makes a run resumable
pipeline   one video: frames are decoded ahead, flows written behind, while the next ones are computed
lock       keeps a second run from the same place
run        all of them, by several workers, and what became of each
"""

from vidgen.extraction.lock import BusyError
from vidgen.extraction.outputs import FORMATS, Settings
from vidgen.extraction.run import Summary, extract_flow

__all__ = ["FORMATS", "BusyError", "Settings", "Summary", "extract_flow"]
