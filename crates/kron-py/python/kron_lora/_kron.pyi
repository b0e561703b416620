"""The extension. Addresses are of elements that the caller owns; null, alignment, strides and overlap are checked."""

CUDA: bool
EMULATES: bool

_Sizes = tuple[int, int, int, int, int]
_Rows = tuple[int, int]
_Buffer = tuple[int, int]
# Number of threads on the host, or number of a device and a stream of it.
_Place = int | tuple[int, int]

def workspace_lens(sizes: _Sizes, rows: int, place: _Place, /) -> tuple[int, int]: ...
def forward(
    sizes: _Sizes, scale: float, dtype: int, rows: int, x: _Rows, y: _Rows, add: bool, theta: int, t: int,
    workspace: _Buffer, place: _Place, /,
) -> None: ...
def backward(
    sizes: _Sizes, scale: float, dtype: int, rows: int, x: _Rows, dy: _Rows, dx: _Rows, add: bool, theta: int,
    t: int, grad: int, workspace: _Buffer, place: _Place, /,
) -> None: ...
def use_openmp(path: str, /) -> bool: ...
def kron(args: list[str], /) -> int: ...
def kron_train(args: list[str], /) -> int: ...
