"""Pictures that are delivered while the job's next ones are drawn.

A job that streams gets each picture when it is finished. The result at the end uses what was done
for it here: no picture is converted twice, and none is uploaded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from worker.errors import DeliveryFailed
from worker.generation.picture import Picture, from_engine
from worker.job.output_fields import Output

# Uploads a picture; gets its place among the images of the result, and the number of grids there.
Upload = Callable[[int, int, Picture], str]


@dataclass(frozen=True)
class EarlyPicture:
    """A picture for the stream.

    Attributes:
        file: the picture in the job's format.
        url: where it was uploaded; None: it is sent itself.
    """

    file: Picture
    url: str | None


class EarlyPictures:
    """The pictures of one job, in their order. Not for concurrent use.

    Args:
        output: what the job asks for.
        upload: None for a job whose pictures are in the result.

    Attributes:
        pictures: in the job's format.
        urls: of the uploaded ones, grids without a URL left out; complete unless `failure` is set.
        failure: why an upload failed; the pictures after it are not uploaded.
        is_streamed: whether RunPod has accepted all of them.
    """

    def __init__(self, output: Output, upload: Upload | None) -> None:
        self.pictures: list[Picture] = []
        self.urls: list[str] = []
        self.failure: DeliveryFailed | None = None
        self.is_streamed = False
        self._output = output
        self._upload = upload

    def add(self, image: str, grids: int) -> EarlyPicture:
        """Convert and upload the next picture.

        Args:
            image: the engine's base64.
            grids: number of grids among the job's images, which come first.

        Raises:
            DeliveryFailed: it cannot be converted.
        """
        place, output = len(self.pictures), self._output
        picture = from_engine(image, output.format, output.quality)
        self.pictures.append(picture)
        has_place = place >= grids or output.delivery != "put"
        if not self._upload or self.failure or not has_place:
            return EarlyPicture(picture, None)
        try:
            self.urls.append(self._upload(place, grids, picture))
        except DeliveryFailed as error:
            self.failure = error
            return EarlyPicture(picture, None)
        return EarlyPicture(picture, self.urls[-1])
