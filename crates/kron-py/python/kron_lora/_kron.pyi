"""The extension. Addresses are of elements that the caller owns; nothing is checked but null, alignment and strides."""

_Sizes = tuple[int, int, int, int, int]
_Rows = tuple[int, int]

def forward(
    sizes: _Sizes, scale: float, dtype: int, rows: int, x: _Rows, y: _Rows, add: bool, theta: int, t: int,
    threads: int, /,
) -> None: ...
def backward(
    sizes: _Sizes, scale: float, dtype: int, rows: int, x: _Rows, dy: _Rows, dx: _Rows, add: bool, theta: int,
    t: int, grad: int, threads: int, /,
) -> None: ...
def use_openmp(path: str, /) -> bool: ...

# Where the extension was built with the feature `cuda`.
_Place = tuple[int, int]

def device_workspace_len(sizes: _Sizes, rows: int, place: _Place, backward: bool, dx: bool, /) -> int: ...
def device_forward(
    sizes: _Sizes, scale: float, dtype: int, rows: int, x: _Rows, y: _Rows, add: bool, theta: int, t: int,
    workspace: tuple[int, int], place: _Place, /,
) -> None: ...
def device_backward(
    sizes: _Sizes, scale: float, dtype: int, rows: int, x: _Rows, dy: _Rows, dx: _Rows, add: bool, theta: int,
    t: int, grad: int, workspace: tuple[int, int], place: _Place, /,
) -> None: ...

def kron(args: list[str], /) -> int: ...
def kron_train(args: list[str], /) -> int: ...
