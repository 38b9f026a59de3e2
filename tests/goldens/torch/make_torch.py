"""Writes the files of this directory with PyTorch, which the tests do not need.

    pip install torch numpy safetensors
    python tests/goldens/torch/make_torch.py

For each net: `<net>.pt`, its state dict, and `<net>.npz` with an input `x` and the
output `y`, both in PyTorch's layout (channels first).
"""

import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def nets(torch):
    """Each net by name: its modules, how they are called, and an input."""
    nn = torch.nn

    def mlp():
        m = nn.ModuleDict(
            {
                "fc1": nn.Linear(8, 6),
                "fc2": nn.Linear(6, 6),
                "out": nn.Linear(6, 3),
            }
        )

        def call(x):
            x = torch.relu(m["fc2"](torch.relu(m["fc1"](x))))
            return m["out"](x)

        return m, call, torch.randn(5, 8)

    def resnet():
        block = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
                "bn1": nn.BatchNorm2d(6),
                "conv2": nn.Conv2d(6, 6, 3, padding=1, bias=False),
                "bn2": nn.BatchNorm2d(6),
                "downsample": nn.Sequential(
                    nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)
                ),
            }
        )
        m = nn.ModuleDict(
            {
                "conv1": nn.Conv2d(3, 4, 3, padding=1, bias=False),
                "bn1": nn.BatchNorm2d(4),
                "layer1": nn.ModuleList([block]),
                "fc": nn.Linear(6, 3),
            }
        )

        def call(x):
            x = torch.relu(m["bn1"](m["conv1"](x)))
            y = torch.relu(block["bn1"](block["conv1"](x)))
            y = block["bn2"](block["conv2"](y))
            x = torch.relu(y + block["downsample"](x))
            return m["fc"](x.mean((2, 3)))

        return m, call, torch.randn(4, 3, 10, 8)

    def lstm():
        m = nn.ModuleDict(
            {"rnn": nn.LSTM(5, 4, 2, batch_first=True), "fc": nn.Linear(4, 3)}
        )
        return m, lambda x: m["fc"](m["rnn"](x)[0][:, -1]), torch.randn(3, 7, 5)

    def gru():
        m = nn.ModuleDict(
            {"rnn": nn.GRU(5, 4, batch_first=True), "fc": nn.Linear(4, 3)}
        )
        return m, lambda x: m["fc"](m["rnn"](x)[0][:, -1]), torch.randn(3, 7, 5)

    def simple_rnn():
        m = nn.ModuleDict({"rnn": nn.RNN(5, 4, batch_first=True)})
        return m, lambda x: m["rnn"](x)[0], torch.randn(3, 7, 5)

    def bidirectional():
        rnn = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        m = nn.ModuleDict({"rnn": rnn, "fc": nn.Linear(8, 3)})
        return m, lambda x: m["fc"](m["rnn"](x)[0]), torch.randn(3, 7, 5)

    def attention():
        m = nn.ModuleDict(
            {
                "embed": nn.Embedding(20, 8),
                "mha": nn.MultiheadAttention(8, 2, batch_first=True),
                "norm": nn.LayerNorm(8),
                "fc": nn.Linear(8, 3),
            }
        )
        nn.init.normal_(m["mha"].in_proj_bias)
        nn.init.normal_(m["mha"].out_proj.bias)

        def call(x):
            x = m["embed"](x)
            return m["fc"](m["norm"](x + m["mha"](x, x, x)[0]))

        return m, call, torch.randint(0, 20, (3, 6))

    def cross_attention():
        """Keys and values of other sizes than queries: three separate weights."""
        m = nn.ModuleDict(
            {"mha": nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)}
        )
        nn.init.normal_(m["mha"].in_proj_bias)
        other = torch.linspace(-1, 1, 3 * 4 * 5).reshape(3, 4, 5)
        return m, lambda x: m["mha"](x, other, other)[0], torch.randn(3, 6, 8)

    def images():
        m = nn.ModuleDict(
            {
                "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
                "slope": nn.PReLU(6),
                "depthwise": nn.Conv2d(6, 12, 3, padding=1, groups=6),
                "norm": nn.GroupNorm(3, 12),
                "separable": nn.ModuleDict(
                    {
                        "depthwise": nn.Conv2d(
                            *(12, 24, 3), padding=1, groups=12, bias=False
                        ),
                        "pointwise": nn.Conv2d(24, 5, 1),
                    }
                ),
                "up": nn.ConvTranspose2d(5, 3, 2, stride=2),
            }
        )

        def call(x):
            x = m["slope"](m["grouped"](x))
            x = torch.relu(m["norm"](m["depthwise"](x)))
            parts = m["separable"]
            return m["up"](parts["pointwise"](parts["depthwise"](x)))

        return m, call, torch.randn(2, 4, 6, 5)

    def signals():
        m = nn.ModuleDict(
            {
                "conv": nn.Conv1d(3, 4, 3),
                "slope": nn.PReLU(),
                "depthwise": nn.Conv1d(4, 8, 3, groups=4),
                "up": nn.ConvTranspose1d(8, 2, 4, stride=2),
            }
        )

        def call(x):
            return m["up"](m["depthwise"](m["slope"](m["conv"](x))))

        return m, call, torch.randn(2, 3, 12)

    def volumes():
        m = nn.ModuleDict(
            {
                "conv": nn.Conv3d(2, 4, (3, 2, 1)),
                "up": nn.ConvTranspose3d(4, 3, (1, 2, 3)),
            }
        )
        return m, lambda x: m["up"](m["conv"](x)), torch.randn(2, 2, 5, 4, 3)

    def flat():
        m = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3), "fc": nn.Linear(3 * 4 * 3, 5)})
        return m, lambda x: m["fc"](m["conv"](x).flatten(1)), torch.randn(2, 2, 6, 5)

    def rms():
        m = nn.ModuleDict({"norm": nn.RMSNorm(6, eps=1e-6)})
        nn.init.normal_(m["norm"].weight)
        return m, lambda x: m["norm"](x), torch.randn(3, 6)

    return {
        build.__name__: build
        for build in (
            *(mlp, resnet, lstm, gru, simple_rnn, bidirectional, attention),
            *(cross_attention, images, signals, volumes, flat, rms),
        )
    }


def trained_a_little(torch, modules, call, x):
    """Moves scales, biases and moving averages away from 0 and 1."""
    modules.train()
    with torch.no_grad():
        for module in modules.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.GroupNorm):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias)
            if isinstance(module, torch.nn.LayerNorm):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias)
            if isinstance(module, torch.nn.PReLU):
                torch.nn.init.uniform_(module.weight, 0.1, 0.5)
        for _ in range(3):
            call(x)
    modules.eval()


def write_nets(torch):
    from safetensors.torch import save_file

    for name, build in nets(torch).items():
        torch.manual_seed(7)
        modules, call, x = build()
        trained_a_little(torch, modules, call, x)
        with torch.no_grad():
            y = call(x)
        torch.save(modules.state_dict(), HERE / f"{name}.pt")
        np.savez(HERE / f"{name}.npz", x=x.numpy(), y=y.numpy())
        if name == "mlp":
            save_file(modules.state_dict(), HERE / "mlp.safetensors")
            for protocol in (3, 4, 5):
                path = HERE / f"mlp_protocol{protocol}.pt"
                torch.save(modules.state_dict(), path, pickle_protocol=protocol)
            write_nested(torch, modules, call, x)
            write_refused(torch, modules)


def write_nested(torch, modules, call, x):
    """What a training script keeps."""
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.01)
    state = {name: value.clone() for name, value in modules.state_dict().items()}
    call(x).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [0.5, None, {"loss": torch.tensor(0.25)}],
        "shape": torch.Size([2, 3]),
        "dtype": torch.float32,
    }
    torch.save(checkpoint, HERE / "nested.pt")


def write_refused(torch, modules):
    torch.save(modules["fc1"], HERE / "whole_module.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(HERE / "script.pt"))
    torch.save(
        modules["fc1"].state_dict(),
        HERE / "legacy.pt",
        _use_new_zipfile_serialization=False,
    )


def write_values(torch):
    """Every dtype, and views of storages."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    numbers = torch.linspace(-2, 2, 6)
    values = {
        **{
            str(dtype).removeprefix("torch."): numbers.to(dtype)
            for dtype in (
                *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
                *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
                *(torch.float8_e4m3fn, torch.float8_e5m2),
                *(torch.complex64, torch.complex128),
            )
        },
        "uint8": torch.arange(6, dtype=torch.uint8),
        "uint16": torch.arange(6).to(torch.uint16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "whole": base,
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "row": base[2],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    torch.save(values, HERE / "values.pt")
    wide = {
        name: (value.to(torch.float32) if _is_narrow(torch, value) else value)
        for name, value in values.items()
    }
    arrays = {name: value.detach().numpy() for name, value in wide.items()}
    np.savez(HERE / "values.npz", **arrays)
    torch.save(base, HERE / "one_tensor.pt")
    torch.serialization.set_crc32_options(False)
    torch.save({"w": base}, HERE / "without_checksum.pt")


def _is_narrow(torch, value):
    return value.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


if __name__ == "__main__":
    import torch

    write_nets(torch)
    write_values(torch)
