//! The machine that probes: 64 KiB, one processor in 64-bit mode, a page of code.
//!
//! Exits for I/O, CPUID, model-specific registers and page tables succeed even where nothing else does; what tells a
//! working KVM from a pretending one is SSE, BMI and AVX arithmetic and a trap taken inside the guest. The guest
//! announces each group on port 0x80, so that the verdict can name the one that failed.
//!
//! | address | what                                                    |
//! |--------:|---------------------------------------------------------|
//! |  0x1000 | page tables, three pages: the first 2 MiB mapped as they are |
//! |  0x4000 | segment descriptors: none, code, data                   |
//! |  0x5000 | interrupt descriptors, 256                              |
//! |  0x8000 | the code                                                |
//! |  0xf000 | top of the stack                                        |

use std::ptr::{self, NonNull};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

const MEMORY: usize = 64 << 10;
const TABLES: u64 = 0x1000;
const SEGMENTS: u64 = 0x4000;
const INTERRUPTS: u64 = 0x5000;
const CODE: u64 = 0x8000;
const STACK: u64 = 0xf000;
/// Where the guest says how far it is.
const PORT: u16 = 0x80;
/// More exits than the code has.
const MAX_EXITS: usize = 64;
/// In `rdi`: run the BMI group, run the AVX group.
const HAS_BMI: u64 = 1;
const HAS_AVX: u64 = 2;

std::arch::global_asm!(
    ".pushsection .rodata.kiln_probe, \"a\"",
    ".balign 64",
    "kiln_probe_start:",
    "mov al, 's'",
    "out 0x80, al",
    "movaps xmm0, [rip + 90f]",
    "addps xmm0, xmm0",
    "movups [rsp - 64], xmm0",
    "pshufd xmm1, xmm0, 0x1b",
    "movd eax, xmm1",
    "cmp eax, 0x41000000",
    "jne 80f",
    "test edi, 1",
    "jz 20f",
    "mov al, 'b'",
    "out 0x80, al",
    "mov ebx, 0x50",
    "tzcnt ecx, ebx",
    "cmp ecx, 4",
    "jne 80f",
    "blsr ecx, ebx",
    "cmp ecx, 0x40",
    "jne 80f",
    "andn ecx, ebx, ebx",
    "jnz 80f",
    "20:",
    "test edi, 2",
    "jz 30f",
    "mov al, 'a'",
    "out 0x80, al",
    "xor ecx, ecx",
    "xgetbv",
    "or eax, 7",
    "xsetbv",
    "vmovups ymm2, [rip + 90f]",
    "vaddps ymm2, ymm2, ymm2",
    "vextractf128 xmm3, ymm2, 1",
    "vmovd eax, xmm3",
    "cmp eax, 0x41200000",
    "jne 80f",
    "vzeroupper",
    "30:",
    "mov al, 't'",
    "out 0x80, al",
    "xor r15d, r15d",
    "int3",
    "cmp r15d, 1",
    "jne 80f",
    "mov al, 'd'",
    "out 0x80, al",
    "hlt",
    "80:",
    "mov al, 'w'",
    "out 0x80, al",
    "hlt",
    "kiln_probe_trap:",
    "mov r15d, 1",
    "iretq",
    "kiln_probe_fault:",
    "mov al, 'f'",
    "out 0x80, al",
    "hlt",
    ".balign 32",
    "90:",
    ".float 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0",
    "kiln_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    static kiln_probe_start: u8;
    static kiln_probe_trap: u8;
    static kiln_probe_fault: u8;
    static kiln_probe_end: u8;
}

/// The guest's memory, unmapped when dropped.
struct Memory(NonNull<u8>);

impl Memory {
    fn map() -> Result<Memory, String> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches nothing of ours.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), MEMORY, protection, MapFlags::PRIVATE) };
        let at = at.map_err(|error| format!("no memory for a machine of 64 KiB: {error}"))?;
        NonNull::new(at.cast()).map(Memory).ok_or_else(|| "no memory".to_owned())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let Some(from) = usize::try_from(at).ok().filter(|from| from + bytes.len() <= MEMORY)
        else {
            return;
        };
        // SAFETY: the mapping is MEMORY bytes long and ours alone: no guest runs while we hold `&mut`.
        let all = unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), MEMORY) };
        all[from..from + bytes.len()].copy_from_slice(bytes);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length; the machine using it is gone, for it was
        // created after it.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), MEMORY) };
    }
}

/// Runs everything; the error says what did not work.
pub(super) fn run() -> Result<(), String> {
    let act =
        |what: &'static str| move |error: kvm_ioctls::Error| format!("cannot {what}: {error}");
    let mut memory = Memory::map()?;
    let (trap, fault) = load(&mut memory);
    tables(&mut memory, trap, fault);
    let kvm = Kvm::new().map_err(act("open it"))?;
    let vm = kvm.create_vm().map_err(act("create a machine"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: self_address(&memory),
    };
    // SAFETY: the mapping outlives the machine, which is declared after it.
    unsafe { vm.set_user_memory_region(region) }.map_err(act("give the machine memory"))?;
    let mut cpu = vm.create_vcpu(0).map_err(act("create a processor"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(act("ask for features"))?;
    cpu.set_cpuid2(&cpuid).map_err(act("set the processor's features"))?;
    let features = features(&cpuid);
    registers(&cpu, features).map_err(act("set the processor's registers"))?;
    execute(&mut cpu)
}

fn self_address(memory: &Memory) -> u64 {
    memory.0.as_ptr().expose_provenance() as u64
}

/// Copies the code; the addresses of its two handlers.
fn load(memory: &mut Memory) -> (u64, u64) {
    let start = &raw const kiln_probe_start;
    let offset = |label: *const u8| label.addr().wrapping_sub(start.addr());
    let len = offset(&raw const kiln_probe_end);
    // SAFETY: the assembler laid these bytes down between the two labels, in read-only memory.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    memory.write(CODE, code);
    let handler = |label: *const u8| CODE + offset(label) as u64;
    (handler(&raw const kiln_probe_trap), handler(&raw const kiln_probe_fault))
}

fn tables(memory: &mut Memory, trap: u64, fault: u64) {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    memory.write(TABLES, &(TABLES + 0x1000 + PRESENT_WRITABLE).to_le_bytes());
    memory.write(TABLES + 0x1000, &(TABLES + 0x2000 + PRESENT_WRITABLE).to_le_bytes());
    memory.write(TABLES + 0x2000, &(LARGE + PRESENT_WRITABLE).to_le_bytes());
    memory.write(SEGMENTS + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    memory.write(SEGMENTS + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    for vector in 0..256 {
        // Below 64 KiB an address is its lowest 16 bits; 8 selects the code segment, 0x8e is an interrupt gate.
        let handler = if vector == 3 { trap } else { fault };
        let gate = (handler & 0xffff) | 8 << 16 | 0x8e00 << 32;
        memory.write(INTERRUPTS + vector * 16, &gate.to_le_bytes());
    }
}

fn features(cpuid: &CpuId) -> u64 {
    let leaf = |wanted| cpuid.as_slice().iter().find(|e| e.function == wanted && e.index == 0);
    let bmi = leaf(7).is_some_and(|leaf| leaf.ebx & (1 << 3) != 0);
    // XSAVE and AVX.
    let avx = leaf(1).is_some_and(|leaf| leaf.ecx & (1 << 26) != 0 && leaf.ecx & (1 << 28) != 0);
    (u64::from(bmi) * HAS_BMI) | (u64::from(avx) * HAS_AVX)
}

fn registers(cpu: &VcpuFd, features: u64) -> Result<(), kvm_ioctls::Error> {
    let mut special = cpu.get_sregs()?;
    let segment = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        l,
        db,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = segment(8, 0xb, 1, 0);
    let data = segment(16, 3, 0, 1);
    (special.ds, special.es, special.ss) = (data, data, data);
    (special.fs, special.gs) = (data, data);
    (special.gdt.base, special.gdt.limit) = (SEGMENTS, 23);
    (special.idt.base, special.idt.limit) = (INTERRUPTS, 256 * 16 - 1);
    special.cr3 = TABLES;
    // Protection, coprocessor present, its errors as exceptions, write protection, paging.
    special.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    // Wide page entries, SSE state and exceptions, and where there is AVX its state.
    special.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | if features & HAS_AVX != 0 { 1 << 18 } else { 0 };
    // 64-bit mode, enabled and active.
    special.efer = 1 << 8 | 1 << 10;
    cpu.set_sregs(&special)?;
    cpu.set_regs(&kvm_regs {
        rip: CODE,
        rsp: STACK,
        rdi: features,
        rflags: 2,
        ..kvm_regs::default()
    })
}

fn execute(cpu: &mut VcpuFd) -> Result<(), String> {
    let mut step = b' ';
    for _ in 0..MAX_EXITS {
        let exit = match cpu.run() {
            Ok(VcpuExit::IoOut(PORT, [said])) => {
                match said {
                    b'w' => return Err(format!("{} gave a wrong result", name(step))),
                    b'f' => return Err(format!("{} faulted", name(step))),
                    _ => step = *said,
                }
                continue;
            }
            Ok(VcpuExit::Hlt) if step == b'd' => return Ok(()),
            Ok(VcpuExit::InternalError) => "an internal error of KVM".to_owned(),
            Ok(VcpuExit::FailEntry(why, _)) => format!("a failed entry ({why:#x})"),
            Ok(VcpuExit::Shutdown) => "a triple fault".to_owned(),
            Ok(other) => format!("an unexpected exit ({other:?})"),
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => continue,
            Err(error) => format!("an error ({error})"),
        };
        return Err(format!("{} ended in {exit}", name(step)));
    }
    Err(format!("{} did not get on", name(step)))
}

fn name(step: u8) -> &'static str {
    match step {
        b's' => "SSE arithmetic",
        b'b' => "BMI arithmetic",
        b'a' => "AVX arithmetic",
        b't' => "a breakpoint trap in the guest",
        b'd' => "halting",
        _ => "the first instruction",
    }
}
