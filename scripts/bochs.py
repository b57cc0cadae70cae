"""Runs a program on another x86 CPU: Linux, started in Bochs, whose first process is the program.

Bochs 3 has AVX-512 and AVX-VNNI, which qemu has not. Its distributions' packages are older, so:

    apt-get install g++ make xorriso isolinux syslinux-common busybox-static cpio
    git clone https://github.com/bochs-emu/Bochs; cd Bochs/bochs
    ./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --with-nogui --enable-pci \
        --enable-handlers-chaining --enable-fast-function-calls --enable-repeat-speedups --disable-docbook
    make
    export BOCHS=$PWD BOCHS_LINUX=/boot/vmlinuz-*-cloud-amd64    # any kernel with a serial console built in
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SECONDS = 3600.0
SYSLINUX = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))

INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/program /library > /dev/ttyS0 2>&1
/bin/busybox sleep 1
/bin/busybox poweroff -f
"""

BOOT = """DEFAULT linux
LABEL linux
KERNEL /vmlinuz
INITRD /initrd.gz
APPEND console=ttyS0 quiet loglevel=0 nokaslr mitigations=off
"""

MACHINE = """display_library: nogui
megs: 512
cpu: model={model}, count=1, ips=50000000
romimage: file={bochs}/bios/BIOS-bochs-latest
vgaromimage: file={bochs}/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={folder}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder}/serial.txt
log: {folder}/bochs.log
clock: sync=none
panic: action=fatal
"""


def available() -> bool:
    """Whether Bochs, a kernel and the tools that make a disc of it are there."""
    tools = all(shutil.which(tool) for tool in ("xorriso", "cpio", "busybox"))
    return tools and "BOCHS" in os.environ and "BOCHS_LINUX" in os.environ and all(map(Path.exists, SYSLINUX))


def run(program: Path, library: Path, model: str) -> str:
    """What ``program library`` prints on the CPU that Bochs calls ``model``."""
    with tempfile.TemporaryDirectory() as scratch:
        return _run(program, library, model, Path(scratch))


def _run(program: Path, library: Path, model: str, folder: Path) -> str:
    root, disc = folder / "root", folder / "disc"
    for made in (root / "bin", root / "dev", disc / "isolinux"):
        made.mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    shutil.copy(program, root / "program")
    shutil.copy(library, root / "library")
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    for needed in set(re.findall(r"/\S+\.so\S*", listed)):
        to = root / needed.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(needed, to)
    init = root / "init"
    init.write_text(INIT, encoding="ascii")
    init.chmod(0o755)
    pack = f"find . | cpio --quiet -o -H newc | gzip -1 > {disc / 'initrd.gz'}"
    subprocess.run(["sh", "-c", pack], cwd=root, check=True)
    shutil.copy(os.environ["BOCHS_LINUX"], disc / "vmlinuz")
    for file in SYSLINUX:
        shutil.copy(file, disc / "isolinux")
    (disc / "isolinux" / "isolinux.cfg").write_text(BOOT, encoding="ascii")
    image = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(folder / "boot.iso"), "-no-emul-boot"]
    image += ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-boot-load-size", "4"]
    subprocess.run([*image, "-boot-info-table", str(disc)], capture_output=True, check=True)
    bochs = os.environ["BOCHS"]
    (folder / "bochsrc").write_text(MACHINE.format(model=model, bochs=bochs, folder=folder), encoding="utf-8")
    # Switching the machine off is a panic to Bochs, so its exit code says nothing.
    command = [f"{bochs}/bochs", "-q", "-f", str(folder / "bochsrc")]
    subprocess.run(command, capture_output=True, input=b"c\n", timeout=SECONDS, check=False)
    return (folder / "serial.txt").read_text(encoding="utf-8", errors="replace")
