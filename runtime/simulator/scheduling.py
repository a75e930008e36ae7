"""Makes the vendor's chip simulator share the processor (runs inside the simulator process).

Each engine of a simulated chip is a thread. On BM1684 and BM1684X these threads wait by locking and
unlocking a mutex in a loop without ever yielding. On a machine with fewer cores than engines every
hand-over between two engines then costs a whole time slice: a call that needs 0.04 s takes 2 to
7 s, and an idle simulator keeps more than one core busy. The host side in turn looks for the next
call's end only every 200 ms.

Both waits go through a library function, ``pthread_mutex_unlock`` and ``usleep``, which a shared
library calls through a slot in its offset table. We point these two slots at a few instructions of
our own: unlock *then yield* (or sleep, while no call is in progress), and sleep for a time of our
choice. Only when threads run changes, never what they compute; docs/simulator.md has the figures.
"""

import ctypes
import mmap
import struct

# Elf64_Dyn tags and x86-64 relocation types (System V ABI).
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_R_X86_64_GLOB_DAT, _R_X86_64_JUMP_SLOT = 6, 7
_SYMBOL_BYTES = 24
_PAGE_BYTES = 4096

#: How often an engine looks for work between calls; also the most that it delays a call's start.
IDLE_POLL_MICROSECONDS = 5000
#: How often the host side looks whether a call has finished.
BUSY_POLL_MICROSECONDS = 500


class _LinkMap(ctypes.Structure):
    """The head of glibc's ``struct link_map``, which a library handle points at."""

    _fields_ = (
        ("l_addr", ctypes.c_size_t),
        ("l_name", ctypes.c_char_p),
        ("l_ld", ctypes.c_size_t),
    )


def _slots(library: ctypes.CDLL, function: str) -> "list[int]":
    """Addresses of the slots through which a loaded library calls an imported function."""
    link_map = ctypes.cast(library._handle, ctypes.POINTER(_LinkMap)).contents
    dynamic: "dict[int, int]" = {}
    entry = link_map.l_ld
    while True:
        tag, value = struct.unpack("<qQ", ctypes.string_at(entry, 16))
        if tag == 0:
            break
        dynamic[tag] = value
        entry += 16

    def address(tag: int) -> int:
        # glibc relocates these entries in place where the section is writable.
        value = dynamic[tag]
        return value if value >= link_map.l_addr else value + link_map.l_addr

    found = []
    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in dynamic:
            continue
        relocations = ctypes.string_at(address(table), dynamic[size])
        for offset, info, _ in struct.iter_unpack("<QQq", relocations):
            if info & 0xFFFFFFFF not in (_R_X86_64_GLOB_DAT, _R_X86_64_JUMP_SLOT):
                continue
            symbol = address(_DT_SYMTAB) + _SYMBOL_BYTES * (info >> 32)
            (name,) = struct.unpack("<I", ctypes.string_at(symbol, 4))
            if ctypes.string_at(address(_DT_STRTAB) + name) == function.encode():
                found.append(link_map.l_addr + offset)
    return found


class Scheduling:
    """The waits of one simulator process; ``busy`` and ``idle`` switch them around a call."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        # Never freed: the simulator's threads run this code until the process ends.
        self._code = mmap.mmap(
            -1, _PAGE_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._used = 0
        self._yield = self._function("sched_yield")
        self._sleep = self._function("usleep")
        #: what an engine calls after each look for work, with IDLE_POLL_MICROSECONDS as argument
        self._pause = self._cell(self._sleep)
        #: the host side's poll interval in microseconds
        self._poll = self._cell(IDLE_POLL_MICROSECONDS)

    def relieve(self, chip: ctypes.CDLL, driver: ctypes.CDLL) -> int:
        """Redirects the waits of chip model and driver library; call it before their threads start.

        Returns:
            How many slots were redirected; 0 means a library version that waits differently.

        Raises:
            OSError: the system forbids changing the slots.
        """
        count = 0
        for slot in _slots(chip, "pthread_mutex_unlock"):
            self._redirect(slot, self._unlock_and_pause())
            count += 1
        for slot in _slots(driver, "usleep"):
            self._redirect(slot, self._sleep_as_told())
            count += 1
        return count

    def busy(self) -> None:
        """A call starts: engines yield between looks, the host side looks often."""
        ctypes.c_size_t.from_address(self._pause).value = self._yield
        ctypes.c_size_t.from_address(self._poll).value = BUSY_POLL_MICROSECONDS

    def idle(self) -> None:
        """No call in progress: everyone sleeps between looks."""
        ctypes.c_size_t.from_address(self._pause).value = self._sleep
        ctypes.c_size_t.from_address(self._poll).value = IDLE_POLL_MICROSECONDS

    def _function(self, name: str) -> int:
        return ctypes.cast(getattr(self._libc, name), ctypes.c_void_p).value or 0

    def _emit(self, data: bytes) -> int:
        start = self._used
        self._code[start : start + len(data)] = data
        self._used = (start + len(data) + 15) & ~15
        return self._base + start

    def _cell(self, value: int) -> int:
        return self._emit(struct.pack("<Q", value))

    def _unlock_and_pause(self) -> int:
        return self._emit(
            b"\x53"  # push rbx
            + b"\x48\xb8"  # mov rax, pthread_mutex_unlock
            + struct.pack("<Q", self._function("pthread_mutex_unlock"))
            + b"\xff\xd0"  # call rax
            + b"\x89\xc3"  # mov ebx, eax
            + b"\xbf"  # mov edi, microseconds (sched_yield ignores it)
            + struct.pack("<I", IDLE_POLL_MICROSECONDS)
            + b"\x48\xb8"  # mov rax, address of the pause cell
            + struct.pack("<Q", self._pause)
            + b"\xff\x10"  # call [rax]
            + b"\x89\xd8"  # mov eax, ebx
            + b"\x5b\xc3"  # pop rbx; ret
        )

    def _sleep_as_told(self) -> int:
        return self._emit(
            b"\x48\xb8"  # mov rax, address of the poll cell
            + struct.pack("<Q", self._poll)
            + b"\x48\x8b\x38"  # mov rdi, [rax]
            + b"\x48\xb8"  # mov rax, usleep
            + struct.pack("<Q", self._sleep)
            + b"\xff\xe0"  # jmp rax
        )

    def _redirect(self, slot: int, target: int) -> None:
        protect = self._libc.mprotect
        protect.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
        page = slot & ~(_PAGE_BYTES - 1)
        if protect(page, _PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
            raise OSError(ctypes.get_errno(), "cannot write to a library's offset table")
        ctypes.c_size_t.from_address(slot).value = target
