"""With what start.sh lets an engine compute: every driver, card and image, and every fault."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes.a1111.process import free_port
from fakes.gpu import (
    CUDA_121,
    CUDA_128,
    RTX_4090,
    report_of,
    write_nvidia_smi,
    write_program,
    write_webui_python,
    write_worker_python,
)

from worker.config import gpu, gpus, nvidia_smi, preflight
from worker.config.gpu import choose, gpu_findings, shown_name, values_of
from worker.config.gpus import oldest_driver
from worker.config.nvidia_smi import Gpu, with_report
from worker.config.preflight import MachineLimits
from worker.config.settings import PROJECT, Settings
from worker.config.shell import for_start_sh

ENGINES = ("a1111", "embedded")
CUDA_118 = CUDA_121 | {"cuda": "11.8"}
FOR_THE_CPU = {"cuda": None, "architectures": [], "xformers": None}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose parts a test replaces, and `start`, which says what start.sh does on it."""
    bin_folder, device_file = tmp_path / "bin", tmp_path / "nvidiactl"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu, "DEVICE_FILE", device_file)

    def install(torch, engine):
        write = write_webui_python if engine == "a1111" else write_worker_python
        python = write(tmp_path / engine, torch)
        if engine == "embedded":
            monkeypatch.setattr(sys, "executable", str(python))
        return {"WEBUI_PYTHON": str(python)}

    def start(engine, torch=CUDA_128, **environ):
        own = install(torch, engine)
        settings = Settings.from_environ(
            {
                "ENGINE": engine,
                "WEBUI_URL": f"http://127.0.0.1:{free_port()}",
                "MODELS_DIR": str(tmp_path / "models"),
                "BAKED_MODELS_DIR": str(tmp_path / "baked"),
                **own,
                **environ,
            }
        )
        limits = MachineLimits(answer=5, nearly_full=0)
        found, compute = preflight.examine(settings, environ, limits)
        sentences = [one.sentence for one in found]
        if any(one.fatal for one in found):
            return SimpleNamespace(does="71", sentences=sentences, line="")
        line = command_of(for_start_sh(settings, compute, environ))
        return SimpleNamespace(does=meaning_of(line), sentences=sentences, line=line)

    return SimpleNamespace(bin=bin_folder, device_file=device_file, start=start)


def command_of(assignments):
    """The environment and the command of the engine, as start.sh itself makes them."""
    script = (
        f'source "{PROJECT}/start.sh"; find_tcmalloc() {{ :; }}; PYTHON=python; {assignments}'
        "engine_command; echo ${environment[@]} ${command[@]}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def meaning_of(line):
    """The device and the attention of an engine with this command."""
    device = "cpu" if "--use-cpu all" in line or "--device cpu" in line else "cuda"
    return f"{device} {'xformers' if '--xformers' in line else 'sdp'}"


# Every driver, card and image --------------------------------------------------------------------

CARDS = {
    "7.5": ("Tesla T4", 15360),
    "8.6": ("NVIDIA GeForce RTX 3090", 24576),
    "8.9": ("NVIDIA GeForce RTX 4090", 24564),
    "9.0": ("NVIDIA H100 80GB HBM3", 81559),
    "10.0": ("NVIDIA B200", 183359),
    "12.0": ("NVIDIA GeForce RTX 5090", 32607),
}
DRIVERS = ("525.147.05", "550.54.15", "570.86.16", "580.65.06")
# Both images have torch 2.10 for CUDA 12.8. Blackwell (10.0, 12.0) needs driver 570.
A1111 = """
    525  xformers xformers xformers xformers 71  71
    550  xformers xformers xformers xformers 71  71
    570  xformers xformers xformers xformers sdp sdp
    580  xformers xformers xformers xformers sdp sdp
"""
EMBEDDED = A1111.replace("xformers", "sdp")


def test_the_documents_name_what_torch_was_built_for():
    build = gpu.torch_build(Path(sys.executable), 60)
    assert (gpus.CUDA, [*gpus.ARCHITECTURES]) == (CUDA_128["cuda"], CUDA_128["architectures"])
    if not build or build["cuda"] is None:
        pytest.skip("this Python's torch was built for the CPU")
    assert (build["cuda"], build["architectures"]) == (gpus.CUDA, [*gpus.ARCHITECTURES])


def cells():
    for engine, text in zip(ENGINES, (A1111, EMBEDDED), strict=True):
        for driver, line in zip(DRIVERS, text.strip().splitlines(), strict=True):
            for card, expected in zip(CARDS, line.split()[1:], strict=True):
                yield engine, driver, card, expected


@pytest.mark.parametrize(("engine", "driver", "capability", "expected"), list(cells()))
def test_each_driver_card_and_image_uses_the_gpu_or_ends_with_a_remedy(
    machine, engine, driver, capability, expected
):
    name, memory = CARDS[capability]
    write_nvidia_smi(machine.bin, f"{name}, {capability}, {driver}, {memory}, {memory - 500}")
    torch = CUDA_128 | ({} if engine == "a1111" else {"xformers": None})
    started = machine.start(engine, torch)
    if expected != "71":
        assert (started.does, started.sentences) == (f"cuda {expected}", [])
        return
    (sentence,) = started.sentences
    assert started.does == "71"
    assert f"The NVIDIA driver {driver} is too old for CUDA 12.8 on {name}" in sentence
    assert "install 570 or newer on the host" in sentence
    assert "DEVICE=cpu" in sentence


def test_a_driver_too_old_for_blackwell_usually_finds_no_device_at_all(machine):
    write_nvidia_smi(machine.bin, "No devices were found", status=6)
    machine.device_file.touch()
    for engine in ENGINES:
        started = machine.start(engine)
        assert started.does == "71"
        assert "(No devices were found): install or repair the NVIDIA" in started.sentences[0]
        assert "a Blackwell GPU needs 570 or newer; or set DEVICE=cpu" in started.sentences[0]


# Every fault -------------------------------------------------------------------------------------

A100 = "NVIDIA A100-SXM4-80GB, 8.0, 550.54.15, 81920, 81000"
LOST = "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system"
ECC = "<ecc_errors><volatile>{}</volatile><aggregate><dram_uncorrectable>9</dram_uncorrectable>"
ECC += "</aggregate></ecc_errors>"
NO_PERMISSION = "[Insufficient Permissions]"

# What the report of an A100 can have, beside its line.
REPORTS = {
    # errors of the memory: the GPU computes on
    "ECC": (
        ECC.format(
            "<sram_uncorrectable_parity>1</sram_uncorrectable_parity>"
            "<dram_correctable>7</dram_correctable><dram_uncorrectable>32</dram_uncorrectable>"
        ),
        *("cuda", "has 33 uncorrected memory errors (ECC) since its driver was loaded"),
    ),
    "ECC of a GPU before Ampere": (
        ECC.format("<double_bit><l2_cache>1</l2_cache><total>2</total></double_bit>"),
        *("cuda", "A100-SXM4-80GB has 2 uncorrected memory errors"),
    ),
    "retired pages": (
        "<retired_pages><pending_retirement>Yes</pending_retirement></retired_pages>",
        *("cuda", "has memory pages that are retired at its next reset"),
    ),
    "a row that cannot be replaced": (
        "<remapped_rows><remapped_row_failure>Yes</remapped_row_failure></remapped_rows>",
        *("cuda", "has failed to replace a broken row of its memory"),
    ),
    "a reset that can wait": (
        "<gpu_recovery_action>Drain and Reset</gpu_recovery_action>",
        *("cuda", "asks for its recovery (Drain and Reset)"),
    ),
    "nothing to report": (
        "<gpu_recovery_action>None</gpu_recovery_action><gpu_reset_status><reset_required>"
        "Requested functionality has been deprecated</reset_required></gpu_reset_status>"
        + ECC.format("<dram_uncorrectable>N/A</dram_uncorrectable>"),
        *("cuda", ""),
    ),
    # a GPU that has failed
    "a reset": (
        "<gpu_recovery_action>Reset</gpu_recovery_action>",
        *("71", "A100-SXM4-80GB has failed (recovery action: Reset): reset it"),
    ),
    "a reset, with an older driver": (
        "<gpu_reset_status><reset_required>Yes</reset_required></gpu_reset_status>",
        *("71", "has failed (reset required: Yes)"),
    ),
    "a reset in a value": (
        "<temperature><gpu_temp>GPU requires reset</gpu_temp></temperature>",
        *("71", "has failed (GPU requires reset)"),
    ),
}
# Texts of real machines: what nvidia-smi prints, its status, its report; what start.sh does with
# either engine, and a part of the sentence that it logs.
FAULTS = {name: ([A100], 0, *row) for name, row in REPORTS.items()} | {
    # MIG slices: in a container nvidia-smi may not see the memory, and the whole card's is not ours
    "a MIG slice": (
        [f"NVIDIA A100-SXM4-80GB, 8.0, 535.161.08, {NO_PERMISSION}, {NO_PERMISSION}"],
        *(0, "", "cuda", ""),
    ),
    "a MIG slice with the card's memory": (
        ["NVIDIA H100 80GB HBM3, 9.0, 570.86.16, 81559, 300"],
        *(0, "<mig_mode><current_mig>Enabled</current_mig></mig_mode>", "cuda", ""),
    ),
    "a vGPU": (["NVIDIA H100L-2-24C, [N/A], 550.54.15, 24576, [N/A]"], 0, "", "cuda", ""),
    # a GPU that has failed
    "a lost GPU that is listed": (
        ["NVIDIA GeForce RTX 3090, 8.6, 550.54.15, [GPU is lost], [GPU is lost]"],
        *(0, "", "71", "RTX 3090 has failed (GPU is lost)"),
    ),
    "a lost GPU": (
        [LOST],
        *(15, "", "71", "finds no usable GPU (Unable to determine the device handle for GPU 0000"),
    ),
    "a GPU off the bus": (
        ["Unable to determine the device handle for GPU0000:07:00.0: Unknown Error"],
        *(255, "", "71", "GPU0000:07:00.0: Unknown Error"),
    ),
    # a driver that does not work
    "a container that lost its devices": (
        ["Failed to initialize NVML: Unknown Error"],
        *(255, "", "71", "(Failed to initialize NVML: Unknown Error): install or repair"),
    ),
    "an updated driver before the reboot": (
        ["Failed to initialize NVML: Driver/library version mismatch", "NVML version: 565.57"],
        *(18, "", "71", "Driver/library version mismatch NVML version: 565.57"),
    ),
    "a warning": (
        ["WARNING: infoROM is corrupted at gpu 0000:B3:00.0", RTX_4090],
        *(14, "", "cuda", "nvidia-smi reports: WARNING: infoROM is corrupted at gpu 0000:B3:00.0"),
    ),
    "no output": ([], *(0, "", "71", "finds no usable GPU (status 0 without a text)")),
    "a warning alone": (
        ["WARNING: infoROM is corrupted at gpu 0000:B3:00.0"],
        *(14, "", "71", "finds no usable GPU (WARNING: infoROM"),
    ),
    # memory
    "a full GPU": (
        ["NVIDIA A100-SXM4-80GB, 8.0, 550.54.15, 81920, 900"],
        *(0, "", "71 cuda", "Only 900 of 81920 MiB of NVIDIA A100-SXM4-80GB are free, and SD1"),
    ),
    "a busy GPU": (
        ["NVIDIA A100-SXM4-80GB, 8.0, 550.54.15, 81920, 2500"],
        *(0, "", "cuda", "Only 2500 of 81920 MiB of NVIDIA A100-SXM4-80GB are free, so CUDA may"),
    ),
    # no code in this torch
    "Pascal": (
        ["NVIDIA GeForce GTX 1080, 6.1, 580.65.06, 8192, 8000"],
        *(0, "", "71", "GTX 1080 has compute capability 6.1, and the torch of"),
    ),
    "a driver before CUDA 12": (
        ["Tesla T4, 7.5, 470.182.03, 15360, 15000"],
        *(0, "", "71", "470.182.03 is too old for CUDA 12.8 on Tesla T4: install 525.60.13 or"),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_the_start_or_is_a_warning_and_never_leads_to_the_cpu(machine, fault, engine):
    lines, status, elements, does, part = FAULTS[fault]
    report = report_of(elements) if elements else "no XML"
    write_nvidia_smi(machine.bin, *lines, status=status, report=report)
    started = machine.start(engine)
    of_a1111, _, of_embedded = does.partition(" ")
    expected = (engine == "embedded" and of_embedded) or of_a1111
    assert started.does.split()[0] == expected
    assert len(started.sentences) == (part != "")
    assert part in "".join(started.sentences)
    on_cpu = machine.start(engine, DEVICE="cpu")
    assert (on_cpu.does, on_cpu.sentences) == ("cpu sdp", [])


def test_a_driver_that_hangs_is_fatal(machine, monkeypatch):
    write_program(machine.bin / "nvidia-smi", "exec sleep 60")
    monkeypatch.setattr(nvidia_smi, "ask", lambda _, ask=nvidia_smi.ask: ask(0.2))
    for engine in ENGINES:
        started = machine.start(engine)
        assert (started.does, "(no answer in 0.2 s)" in started.sentences[0]) == ("71", True)


def test_an_nvidia_smi_that_no_signal_ends_holds_nothing_up(machine, monkeypatch):
    """As in the driver of a failed GPU: it is still running when the answer is there."""
    hanging = []

    def kill(process):
        hanging.append(process)

    monkeypatch.setattr(subprocess.Popen, "kill", kill)
    monkeypatch.setattr(nvidia_smi, "_UNTIL_KILLED", 0.1)
    write_program(machine.bin / "nvidia-smi", "exec sleep 60")
    answer = nvidia_smi.ask(0.1)
    monkeypatch.undo()
    assert [process.poll() for process in hanging] == [None, None]
    assert (answer.gpus, answer.status) == ((), nvidia_smi.NO_STATUS)
    for process in hanging:
        process.kill()
        process.wait()


def test_the_output_of_nvidia_smi_has_a_limit(machine, monkeypatch):
    monkeypatch.setattr(nvidia_smi, "_MAX_OUTPUT", 4096)
    write_program(machine.bin / "nvidia-smi", f"echo {RTX_4090}; exec yes")
    answer = nvidia_smi.ask(60)
    assert (len(answer.gpus), answer.status, len(answer.remarks)) == (1, -signal.SIGXFSZ, 300)


def test_where_path_lacks_the_folder_of_wsl_nvidia_smi_is_found(machine, monkeypatch):
    write_nvidia_smi(machine.bin.parent / "wsl", RTX_4090)
    monkeypatch.setattr(nvidia_smi, "WSL", str(machine.bin.parent / "wsl"))
    assert machine.start("embedded").does == "cuda sdp"


@pytest.mark.parametrize(
    ("driver", "torch", "does", "part"),
    [
        ("470.182.03", CUDA_128, "71", "The NVIDIA driver 470.182.03 is too old for CUDA 12.8"),
        ("470.182.03", CUDA_118, "cuda sdp", ""),
        ("580.95.05", CUDA_128, "cuda sdp", ""),  # nvidia-smi is older than the driver
    ],
)
def test_an_nvidia_smi_before_510_lists_gpus_without_their_compute_capability(
    machine, driver, torch, does, part
):
    unknown = 'Field "compute_cap" is not a valid field to query.'
    listed = f"*count*) echo NVIDIA A100-SXM4-80GB, 1, {driver}, 81920, 81000"
    script = f"case $1 in *compute_cap*) echo '{unknown}'; exit 2;; {listed};; esac"
    write_program(machine.bin / "nvidia-smi", script)
    started = machine.start("a1111", torch)
    assert (started.does, part in "".join(started.sentences)) == (does, True)


def test_a_newer_cuda_than_the_drivers_own_is_used_where_cuda_compat_provides_it(machine):
    for cuda, does in (("12.4", "71"), ("13.0", "cuda xformers")):
        write_nvidia_smi(machine.bin, A100, report=report_of("", cuda=cuda))
        assert machine.start("a1111", CUDA_128 | {"cuda": "13.0"}).does == does


def test_warnings_around_the_report_hide_nothing_and_a_broken_one_hides_no_gpu(machine):
    report = report_of("<gpu_recovery_action>Reset</gpu_recovery_action>")
    entities = f'<!DOCTYPE a [<!ENTITY x "x">]>{report_of("<uuid>&x;</uuid>")}'
    for text, does in (
        (f"WARNING: a\n{report}\nWARNING: infoROM is corrupted", "71"),
        (report[:-1], "cuda sdp"),
        (entities, "cuda sdp"),
    ):
        write_nvidia_smi(machine.bin, A100, report=text)
        assert machine.start("embedded").does == does


@pytest.mark.parametrize("engine", ENGINES)
def test_a_torch_for_the_cpu_beside_a_gpu_is_fatal(machine, engine):
    write_nvidia_smi(machine.bin, RTX_4090)
    started = machine.start(engine, FOR_THE_CPU)
    assert (started.does, len(started.sentences)) == ("71", 1)
    assert "was built for the CPU, and this machine has a GPU: install" in started.sentences[0]
    assert machine.start(engine, FOR_THE_CPU, DEVICE="cpu").does == "cpu sdp"


# What promises a GPU -----------------------------------------------------------------------------

NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that"
    " the latest NVIDIA driver is installed and running."
)
NO_DEVICE = "No devices were found"
UNUSABLE = "nvidia-smi finds no usable GPU (NVIDIA-SMI has failed because it couldn't"
CPU = "nothing promises an NVIDIA GPU here, so the engine computes on the CPU"
WITHOUT = [
    # nvidia-smi's status and text (None: not installed), the device file, RunPod's number of GPUs;
    # what start.sh does with A1111 and with the embedded engine, and a part of what it logs
    (None, "", False, "", "71", "cpu sdp", "There is no NVIDIA GPU here, and A1111 needs", CPU),
    (None, "", False, "0", "71", "cpu sdp", "There is no NVIDIA GPU here, and A1111 needs", CPU),
    (None, "", False, "1", "71", "71", *["RUNPOD_GPU_COUNT=1, but nvidia-smi and the driver"] * 2),
    (None, "", True, "", "cuda sdp", "cuda sdp", "", ""),  # the image has no nvidia-smi
    (9, NO_DRIVER, False, "", "71", "cpu sdp", UNUSABLE, f"{CPU} (nvidia-smi: NVIDIA-SMI has"),
    (9, NO_DRIVER, False, "2", "71", "71", UNUSABLE, UNUSABLE),
    (9, NO_DRIVER, True, "", "71", "71", UNUSABLE, UNUSABLE),
    (6, NO_DEVICE, False, "", "71", "cpu sdp", f"({NO_DEVICE})", f"{CPU} (nvidia-smi: {NO_DEVICE}"),
]


@pytest.mark.parametrize("row", WITHOUT)
def test_only_a_machine_that_promises_no_gpu_computes_on_the_cpu_and_says_so(
    machine, monkeypatch, caplog, row
):
    status, text, has_file, count, a1111, embedded, *parts = row
    caplog.set_level(logging.INFO)
    if status is not None:
        write_nvidia_smi(machine.bin, text, status=status)
    else:
        monkeypatch.setattr(gpu.nvidia_smi.shutil, "which", lambda *_, **__: None)
    if has_file:
        machine.device_file.touch()
    outcomes = zip(ENGINES, (a1111, embedded), parts, strict=True)
    for engine, does, part in outcomes:
        started = machine.start(engine, RUNPOD_GPU_COUNT=count)
        assert started.does == does
        assert part in " ".join([*started.sentences, *caplog.messages])
        assert ("DEVICE=cpu" in "".join(started.sentences)) == (does == "71")
        assert machine.start(engine, RUNPOD_GPU_COUNT=count, DEVICE="cpu").does == "cpu sdp"


# Which GPU, and with what -------------------------------------------------------------------------

OLD = Gpu.read("NVIDIA GeForce GTX 1080, 6.1, 550.54.15, 8192, 8000")
BUSY = Gpu.read("NVIDIA GeForce RTX 4090, 8.9, 550.54.15, 24564, 4000")
IDLE = Gpu.read("NVIDIA GeForce RTX 4090, 8.9, 550.54.15, 24564, 24000")
UUIDS = report_of(*(f"<uuid>GPU-{digit * 8}</uuid>" for digit in "abc"))
BY_BUS = "CUDA_DEVICE_ORDER=PCI_BUS_ID"


@pytest.mark.parametrize(
    ("environ", "flags", "used", "expected"),
    [
        ({}, (), "idle", [BY_BUS, "CUDA_VISIBLE_DEVICES=2"]),  # the usable one with most memory
        ({"CUDA_VISIBLE_DEVICES": "1"}, (), "busy", [BY_BUS]),
        ({"CUDA_VISIBLE_DEVICES": "2,1"}, ("--device-id", "1"), "busy", [BY_BUS]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-cccc"}, (), "idle", [BY_BUS]),
        ({}, ("--medvram", "--device-id=2"), "idle", [BY_BUS]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, (), "GTX 1080 has compute capability 6.1", None),
        ({}, ("--device-id", "0", "--api"), "GTX 1080 has compute capability 6.1", None),
        ({"CUDA_VISIBLE_DEVICES": ""}, (), "CUDA_VISIBLE_DEVICES='' hides every GPU", None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, (), "CUDA_VISIBLE_DEVICES='-1' hides every GPU", None),
        ({"CUDA_VISIBLE_DEVICES": "²"}, (), "hides every GPU", None),  # a digit, but no number
        ({}, ("--device-id", "3"), "--device-id 3 of WEBUI_ARGS names no GPU", None),
        # CUDA's own order is unknown: one good GPU is enough
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, (), "busy", []),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1"}, (), "busy", []),
    ],
)
def test_the_check_is_about_the_gpu_that_the_engine_uses(environ, flags, used, expected):
    old, busy, idle = with_report([OLD, BUSY, IDLE], UUIDS)
    settings = Settings(engine="a1111", webui_args=flags)
    chosen = choose([old, busy, idle], environ, flags)
    if isinstance(chosen, gpu.Finding):
        assert (chosen.fatal, used in chosen.sentence) == (True, True)
        return
    found, name, environment = gpu._judge(chosen, CUDA_128, settings)
    fatal = [one.sentence for one in found if one.fatal]
    if expected is None:
        assert used in fatal[0]
    else:
        assert (fatal, name, [*environment]) == ([], {"idle": idle, "busy": busy}[used], expected)


def test_the_engine_gets_what_makes_it_use_the_chosen_gpu(machine):
    write_nvidia_smi(machine.bin, RTX_4090.replace("24217", "9000"), RTX_4090)
    for engine in ENGINES:
        assert machine.start(engine).line.startswith(f"{BY_BUS} CUDA_VISIBLE_DEVICES=1 ")


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ("", "--xformers"),
        ("--medvram --opt-channelslast", "--xformers"),
        ("--use-cpu interrogate", "--xformers"),  # not the pictures
        ("--use-cpu all", "--use-cpu all --precision full --no-half --opt-sdp-attention"),
        ("--use-cpu=SD", "--use-cpu all --precision full --no-half --opt-sdp-attention"),
        ("--opt-sdp-attention", ""),
        ("--medvram --opt-sub-quad-attention", ""),
        ("--opt-split-attention-v1 --medvram", ""),
        ("--xformers", ""),
    ],
)
def test_the_operators_flags_win(machine, words, chosen):
    write_nvidia_smi(machine.bin, RTX_4090)
    before, _, after = machine.start("a1111", WEBUI_ARGS=words).line.partition("--no-download-sd")
    own = before.split("--port")[1].split()[1:]
    assert " ".join(own) == chosen
    assert after.strip().endswith(words)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in before


@pytest.mark.parametrize(
    ("line", "environ", "on"),
    [
        ("RTX 5090, 12.0, 580.95.05, 32607, 32000", {}, "on RTX 5090"),
        (RTX_4090, {}, None),
        (RTX_4090.replace("8.9", "[N/A]"), {}, None),
        (RTX_4090, {"DEVICE": "cpu"}, "on the CPU"),
    ],
)
def test_the_operators_xformers_is_a_warning_where_it_cannot_work(machine, line, environ, on):
    write_nvidia_smi(machine.bin, line)
    for flag in ("--xformers", "--force-enable-xformers"):
        started = machine.start("a1111", WEBUI_ARGS=flag, **environ)
        assert (started.does != "71", len(started.sentences)) == (True, on is not None)
        parts = [] if on is None else [f"code for A1111's VAE {on}", f"remove {flag} from WEBUI_"]
        assert [part for part in parts if part not in started.sentences[0]] == []


def test_the_flags_of_a1111s_own_variable_count_as_well(machine):
    write_nvidia_smi(machine.bin, RTX_4090)
    started = machine.start("a1111", WEBUI_ARGS="--api-log", COMMANDLINE_ARGS='"--use-cpu all"')
    assert started.does == "cpu sdp"
    assert started.line.strip().endswith("--api-log --use-cpu all")


def test_without_xformers_or_a_known_capability_torchs_attention_is_used(machine):
    write_nvidia_smi(machine.bin, RTX_4090)
    assert machine.start("a1111", CUDA_128 | {"xformers": None}).does == "cuda sdp"
    assert machine.start("a1111", CUDA_121).does == "cuda sdp"  # a file of an older image
    write_nvidia_smi(machine.bin, RTX_4090.replace("8.9", "[N/A]"))
    assert machine.start("a1111").does == "cuda sdp"


# One GPU -----------------------------------------------------------------------------------------


def about(line, torch=CUDA_128, **settings):
    found = gpu_findings(Gpu.read(line), torch, Settings(**{"engine": "a1111"} | settings))
    return [(one.fatal, one.sentence) for one in found]


TINY = "NVIDIA GeForce GTX 1650, 7.5, 550.54.15, 3072, 3000"
PTX = {"cuda": "12.1", "architectures": ["sm_80", "compute_90"]}
BLACKWELL = "NVIDIA GeForce RTX 5090, 12.0, 580.95.05, 32607, 32000"


def test_a_small_gpu_is_fatal_for_a1111_alone_and_not_with_its_flags_for_little_memory():
    ((fatal, sentence),) = about(TINY)
    assert (fatal, "has 3072 MiB of memory, and A1111 needs 3500 MiB: use" in sentence) == (1, 1)
    ((fatal, sentence),) = about(TINY, engine="embedded")
    assert (fatal, "--lowvram" in sentence) == (False, False)
    for flag in ("--lowvram", "--medvram", "--medvram-sdxl"):
        assert about(TINY, webui_args=flag) == []


def test_code_for_a_gpu_is_machine_code_of_its_generation_or_older_ptx():
    assert about(BLACKWELL, PTX) == []
    assert "7.5" in about(TINY.replace("3072, 3000", "15360, 15000"), PTX)[0][1]
    assert about("NVIDIA A100, SXM4, 8.0, 550.54.15, 81920, 81000") == []  # a comma in the name
    assert about(BLACKWELL, None) == []  # a torch that cannot be imported
    odd = PTX | {"architectures": ["gfx1030", "sm_90a", "sm_100f", "sm_120f", ""]}
    assert (about(BLACKWELL, odd), about(TINY, odd)[0][0]) == ([], True)


@pytest.mark.parametrize(
    ("cuda", "capability", "driver"),
    [
        ("11.8", (8, 9), (450, 80, 2)),
        ("12.8", (9, 0), (525, 60, 13)),
        ("12.8", (12, 0), (570,)),
        ("12.8", None, (525, 60, 13)),
        ("13.0", (10, 0), (580, 65, 6)),
        ("14.0", (9, 0), ()),  # unknown: CUDA's own error is better
    ],
)
def test_the_oldest_driver_is_that_of_the_cuda_version_and_that_of_the_card(
    cuda, capability, driver
):
    assert oldest_driver(cuda, capability) == driver


def test_a_flags_values_end_at_the_next_flag():
    flags = ("--medvram", "--use-cpu", "sd", "vae", "--api", "--device-id=1")
    assert values_of("--use-cpu", flags) == ["sd", "vae"]
    assert values_of("--device-id", flags) == ["1"]
    assert values_of("--lowvram", flags) == values_of("--medvram", flags) == []


def test_where_no_file_describes_torch_it_is_asked_itself(tmp_path):
    """A small module in the place of torch, whose import takes seconds."""
    (tmp_path / "torch.py").write_text(
        "class version: cuda = '12.8'\nclass _C: _cuda_getArchFlags = lambda: 'sm_80 sm_90'\n"
    )
    python = tmp_path / "a1111" / "bin" / "python"
    write_program(python, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    build = {"cuda": "12.8", "architectures": ["sm_80", "sm_90"]}
    assert gpu.torch_build(python, 60).items() >= build.items()
    (tmp_path / "sitecustomize.py").write_text("print('a line before it')")
    assert gpu.torch_build(python, 60).items() >= build.items()
    write_program(python, "echo no JSON")
    assert gpu.torch_build(python, 60) is None
    write_program(python, "exit 1")  # without a torch
    assert gpu.torch_build(python, 60) is None


@pytest.mark.parametrize(
    ("gpu", "shown"),
    [
        (Gpu("NVIDIA L4", (8, 9), "570", 23034, 22500), "NVIDIA L4"),
        (Gpu("NVIDIA H100", (9, 0), "570", 81559, None, is_mig=True), "NVIDIA H100 (MIG slice)"),
        (Gpu("X MIG 1g.24gb", (12, 0), "580", 24000, None, is_mig=True), "X MIG 1g.24gb"),
        (Gpu("NVIDIA A100", (8, 0), "570", None, None), "NVIDIA A100 (memory unknown)"),
        (Gpu("a\nb", (8, 0), "570", 9, 9), "a\\nb"),
    ],
)
def test_the_name_of_a_gpu_says_whether_it_is_only_a_part_of_a_card(gpu, shown):
    assert shown_name(gpu) == shown
