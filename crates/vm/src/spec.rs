//! What to boot, and the command line that says so to QEMU 7.2 and later.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use kiln_block::ByteLen;
use kiln_model::event::Acceleration;
use serde_json::{Value, json};

use crate::{Emulator, VmError};

/// The name of the agent's port in the guest: `/dev/virtio-ports/kiln.agent`, or the port whose `name` in
/// `/sys/class/virtio-ports` says so.
pub const AGENT_PORT: &str = "kiln.agent";
/// The chardev of the serial console, for control commands.
pub(crate) const CONSOLE: &str = "console";

/// Given to every kernel: they make booting quicker and reports visible, and leave what is tested alone.
///
/// `loglevel=5` prints warnings and worse from the first line on; a panic or an oops raises it by itself, the agent
/// once it runs. `panic=-1` turns a panic into an exit of QEMU after its last line; `sysrq_always_enabled` lets a hung
/// kernel be questioned.
pub const PARAMETERS: &[&str] = &[
    "console=ttyS0",
    "panic=-1",
    "loglevel=5",
    "sysrq_always_enabled",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
    "i8042.noaux",
    "i8042.nokbd",
    "8250.nr_uarts=1",
    "random.trust_cpu=on",
];
/// Also given where QEMU translates: its clock is steady, and waiting to find that out costs a tenth of the boot.
pub const TCG_PARAMETERS: &[&str] = &["tsc=reliable", "no_timer_check"];
/// Quicker still, but another kernel in what it does: only for those who ask.
pub const CHANGING_PARAMETERS: &[&str] =
    &["mitigations=off", "nokaslr", "nowatchdog", "noreplace-smp"];

/// How much of a console is kept when nobody says otherwise.
pub const CONSOLE_LIMIT: ByteLen = ByteLen::mib(64);

/// The machine. The older `pc` computes its table of interrupts anew for each device that is switched on, which takes a
/// translated guest a tenth of its boot, and has IDE channels that cannot be left out.
const MACHINE: &str = "q35,sata=off,smbus=off";

/// The longest path a unix socket may have.
pub const MAX_SOCKET_PATH: usize = 107;

/// How long a broken connection to a disk may take to be made again.
const RECONNECT_SECONDS: u32 = 10;

/// Whether a disk outlives a crash of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The guest's flushes stop at the host's page cache: for disks that are thrown away.
    Discardable,
    /// The guest's flushes reach the host's disk.
    Flushed,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSpec {
    /// Served by somebody else over vhost-user, who also tells the guest its serial. When the connection breaks, QEMU
    /// makes a new one as soon as the socket takes it, and the guest waits meanwhile.
    Served {
        /// The unix socket; at most [`MAX_SOCKET_PATH`] bytes.
        socket: PathBuf,
    },
    /// Served by somebody else over NBD, as the export without a name. The machine's memory stays its own. When the
    /// connection breaks, QEMU makes a new one and repeats what was in flight, and the guest waits meanwhile; for so long.
    Nbd {
        /// How the guest knows it; at most 20 bytes.
        serial: String,
        /// The unix socket; at most [`MAX_SOCKET_PATH`] bytes.
        socket: PathBuf,
        /// Whether the guest may not write it.
        read_only: bool,
    },
    /// A raw file.
    File {
        /// How the guest knows it; at most 20 bytes.
        serial: String,
        /// The raw image; its length is the disk's.
        path: PathBuf,
        /// What a flush means.
        durability: Durability,
    },
}

/// One machine.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// The emulator.
    pub emulator: Emulator,
    /// What executes.
    pub acceleration: Acceleration,
    /// `vmlinux` with a PVH note (quicker: no firmware, no decompression, and so no KASLR), or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// Follow Kiln's own, so that they win.
    pub parameters: Vec<String>,
    /// Arguments of the guest's init.
    pub init_arguments: Vec<String>,
    /// Its size.
    pub memory: ByteLen,
    /// At least one.
    pub cpus: u8,
    /// Found in the guest by serial. Whoever serves one sees the guest's memory.
    pub disks: Vec<DiskSpec>,
    /// Where its console is recorded.
    pub console_log: PathBuf,
    /// The most of it that is kept; [`CONSOLE_LIMIT`] where nobody asked for more or less.
    pub console_limit: ByteLen,
}

/// The numbers of the descriptors QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub(crate) console: RawFd,
    pub(crate) control: RawFd,
    pub(crate) agent: RawFd,
}

/// How a machine begins, and what its memory is: descriptors QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Beginning {
    /// It boots.
    Boot,
    /// It boots in memory that can be saved.
    BootInFile(RawFd),
    /// It waits for a saved state. Its memory is a private copy of the file, made page by page as it is written.
    Restored(RawFd),
    /// It waits for a saved state. Its memory is the file itself, which others may map.
    RestoredShared(RawFd),
}

impl Beginning {
    /// The file of its memory, and whether what is written goes there.
    fn memory(self) -> Option<(RawFd, bool)> {
        match self {
            Beginning::Boot => None,
            Beginning::BootInFile(file) | Beginning::RestoredShared(file) => Some((file, true)),
            Beginning::Restored(file) => Some((file, false)),
        }
    }

    fn boots(self) -> bool {
        matches!(self, Beginning::Boot | Beginning::BootInFile(_))
    }
}

impl VmSpec {
    /// The kernel's command line.
    ///
    /// # Errors
    /// When it is longer than any kernel reads.
    pub fn command_line(&self) -> Result<String, VmError> {
        let tcg = match self.acceleration {
            Acceleration::Tcg => TCG_PARAMETERS,
            Acceleration::Kvm => &[],
        };
        let own = PARAMETERS.iter().chain(tcg).map(|word| (*word).to_owned());
        let mut words: Vec<String> = own.chain(self.parameters.iter().cloned()).collect();
        if !self.init_arguments.is_empty() {
            words.push("--".into());
            words.extend(self.init_arguments.iter().cloned());
        }
        let line = words.join(" ");
        // COMMAND_LINE_SIZE of x86, with its terminating zero.
        match line.len() {
            0..2048 => Ok(line),
            long => Err(VmError::Spec(format!(
                "the kernel's command line has {long} bytes and the kernel reads 2047; shorten the parameters"
            ))),
        }
    }

    /// How a chardev is told to connect again after a moment.
    fn reconnect(&self) -> &'static str {
        // The coarse option is deprecated since the finer one came, and gone in later versions.
        if self.emulator.version() >= [9, 2, 0] { "reconnect-ms=100" } else { "reconnect=1" }
    }

    /// Whether somebody else maps the machine's memory.
    pub fn shares_memory(&self) -> bool {
        self.disks.iter().any(|disk| matches!(disk, DiskSpec::Served { .. }))
    }

    /// All that a saved machine's devices and memory depend on, the emulator and what it boots aside: a machine is restored
    /// only where this is the same.
    ///
    /// # Errors
    /// As those of a start.
    pub fn shape(&self) -> Result<String, VmError> {
        let mut spec = self.clone();
        for disk in &mut spec.disks {
            match disk {
                DiskSpec::Served { socket } | DiskSpec::Nbd { socket, .. } => socket.clear(),
                DiskSpec::File { path, .. } => path.clear(),
            }
        }
        (spec.kernel, spec.initramfs) = (PathBuf::new(), None);
        let channels = Channels { console: 3, control: 4, agent: 5 };
        let words = spec.arguments(channels, Beginning::BootInFile(6))?;
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        Ok(words.join("\n"))
    }

    /// The size of its memory as QEMU is told, in whole KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        self.memory.get().div_ceil(1024)
    }

    /// QEMU's arguments. The channels are descriptors it inherits: there are no sockets in any folder.
    pub(crate) fn arguments(
        &self,
        channels: Channels,
        beginning: Beginning,
    ) -> Result<Vec<OsString>, VmError> {
        if self.cpus == 0 {
            return Err(VmError::Spec("a machine needs at least one processor".into()));
        }
        if self.memory < ByteLen::mib(32) {
            return Err(VmError::Spec(format!(
                "no kernel boots in {} of memory; give the machine 32M or more",
                self.memory
            )));
        }
        let mut args = Arguments::default();
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.word(flag);
        }
        args.pair("-name", "kiln");
        args.pair("-display", "none");
        let file = beginning.memory();
        let backed = file.is_some() || self.shares_memory();
        let memory_of_its_own = if backed { ",memory-backend=memory" } else { "" };
        args.pair("-machine", format!("{MACHINE}{memory_of_its_own}"));
        args.pair("-accel", self.acceleration.word());
        // Distributions now build for x86-64-v2 and v3, which QEMU's default processor is not.
        args.pair(
            "-cpu",
            match self.acceleration {
                Acceleration::Kvm => "host",
                Acceleration::Tcg => "max",
            },
        );
        args.pair("-smp", self.cpus.to_string());
        let memory = self.memory_kib();
        args.pair("-m", format!("{memory}K"));
        // A machine is restored with the same backend that it was saved with, by its name.
        match file {
            Some((file, shared)) => args.pair(
                "-object",
                format!(
                    "memory-backend-file,id=memory,size={memory}K,mem-path=/proc/self/fd/{file},share={}",
                    if shared { "on" } else { "off" }
                ),
            ),
            None if backed => args.pair(
                "-object",
                format!("memory-backend-memfd,id=memory,size={memory}K,share=on"),
            ),
            None => {}
        }
        if beginning.boots() {
            args.pair("-kernel", &self.kernel);
            if let Some(initramfs) = &self.initramfs {
                args.pair("-initrd", initramfs);
            }
            args.pair("-append", self.command_line()?);
        } else {
            args.pair("-incoming", "defer");
        }
        args.chardev(CONSOLE, channels.console);
        args.pair("-serial", format!("chardev:{CONSOLE}"));
        args.chardev("control", channels.control);
        args.pair("-mon", "chardev=control,mode=control");
        args.chardev("agent", channels.agent);
        args.pair("-device", "virtio-serial-pci,max_ports=2");
        args.pair("-device", format!("virtserialport,nr=1,chardev=agent,name={AGENT_PORT}"));
        args.pair("-object", "rng-random,id=entropy,filename=/dev/urandom");
        args.pair("-device", "virtio-rng-pci,rng=entropy");
        for (number, disk) in self.disks.iter().enumerate() {
            let id = format!("disk{number}");
            match disk {
                DiskSpec::Served { socket } => args.served(&id, socket, self)?,
                DiskSpec::Nbd { serial, socket, read_only } => {
                    args.nbd(&id, serial, socket, *read_only, self.cpus)?;
                }
                DiskSpec::File { serial, path, durability } => {
                    args.file(&id, serial, path, *durability)?;
                }
            }
        }
        Ok(args.0)
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn word(&mut self, word: impl Into<OsString>) {
        self.0.push(word.into());
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.word(name);
        self.word(value);
    }

    fn chardev(&mut self, id: &str, fd: RawFd) {
        self.pair("-chardev", format!("socket,id={id},fd={fd}"));
    }

    /// In JSON, for a path may hold a comma and a serial anything.
    fn json(&mut self, name: &str, value: &Value) {
        self.pair(name, value.to_string());
    }

    fn file(
        &mut self,
        id: &str,
        serial: &str,
        path: &Path,
        durability: Durability,
    ) -> Result<(), VmError> {
        check_serial(serial)?;
        let Some(utf8) = path.to_str() else {
            return Err(VmError::Spec(format!(
                "QEMU cannot be told a path that is not UTF-8: {}",
                path.display()
            )));
        };
        let cache = json!({
            "direct": false,
            "no-flush": durability == Durability::Discardable,
        });
        self.json(
            "-blockdev",
            &json!({
                "driver": "raw",
                "node-name": id,
                "discard": "unmap",
                "cache": cache,
                "file": { "driver": "file", "filename": utf8, "discard": "unmap", "cache": cache },
            }),
        );
        self.json("-device", &json!({ "driver": "virtio-blk-pci", "drive": id, "serial": serial }));
        Ok(())
    }

    fn nbd(
        &mut self,
        id: &str,
        serial: &str,
        socket: &Path,
        read_only: bool,
        queues: u8,
    ) -> Result<(), VmError> {
        check_serial(serial)?;
        let path = socket_path(socket)?;
        self.json(
            "-blockdev",
            &json!({
                "driver": "nbd",
                "node-name": id,
                "server": { "type": "unix", "path": path },
                "reconnect-delay": RECONNECT_SECONDS,
                "read-only": read_only,
                "discard": "unmap",
                "cache": { "direct": false, "no-flush": false },
            }),
        );
        self.json(
            "-device",
            &json!({
                "driver": "virtio-blk-pci", "drive": id, "serial": serial, "num-queues": queues,
            }),
        );
        Ok(())
    }

    fn served(&mut self, id: &str, socket: &Path, vm: &VmSpec) -> Result<(), VmError> {
        let path = socket_path(socket)?;
        // A comma ends an option's value unless it is doubled.
        let path = path.replace(',', ",,");
        self.pair("-chardev", format!("socket,id={id},path={path},{}", vm.reconnect()));
        self.json(
            "-device",
            &json!({ "driver": "vhost-user-blk-pci", "chardev": id, "num-queues": vm.cpus }),
        );
        Ok(())
    }
}

fn check_serial(serial: &str) -> Result<(), VmError> {
    if serial.len() <= 20 {
        return Ok(());
    }
    Err(VmError::Spec(format!(
        "the serial {serial:?} is longer than the 20 bytes a virtio disk can say"
    )))
}

fn socket_path(socket: &Path) -> Result<&str, VmError> {
    let shown = socket.display();
    let path = socket.to_str().ok_or_else(|| {
        VmError::Spec(format!("QEMU cannot be told a path that is not UTF-8: {shown}"))
    })?;
    if path.len() > MAX_SOCKET_PATH {
        return Err(VmError::Spec(format!(
            "the socket {shown} has a path of {} bytes and the kernel takes {MAX_SOCKET_PATH}",
            path.len()
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            emulator: Emulator::for_test(),
            acceleration: Acceleration::Tcg,
            kernel: "/k/vmlinux".into(),
            initramfs: Some("/k/initramfs".into()),
            parameters: vec!["loglevel=7".into()],
            init_arguments: Vec::new(),
            memory: ByteLen::mib(512),
            cpus: 2,
            disks: vec![
                DiskSpec::Served { socket: "/d/with,comma.sock".into() },
                DiskSpec::File {
                    serial: "scratch".into(),
                    path: "/d/with,comma.raw".into(),
                    durability: Durability::Discardable,
                },
            ],
            console_log: "/r/console.log".into(),
            console_limit: CONSOLE_LIMIT,
        }
    }

    fn lines(spec: &VmSpec) -> String {
        let channels = Channels { console: 10, control: 11, agent: 12 };
        let words = spec.arguments(channels, Beginning::Boot).unwrap();
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ").replace(" -", "\n-")
    }

    #[test]
    fn the_command_line_holds_what_the_machine_needs_and_nothing_else() {
        insta::assert_snapshot!(lines(&spec()), @r#"
        -nodefaults
        -no-user-config
        -no-reboot
        -name kiln
        -display none
        -machine q35,sata=off,smbus=off,memory-backend=memory
        -accel tcg
        -cpu max
        -smp 2
        -m 524288K
        -object memory-backend-memfd,id=memory,size=524288K,share=on
        -kernel /k/vmlinux
        -initrd /k/initramfs
        -append console=ttyS0 panic=-1 loglevel=5 sysrq_always_enabled cryptomgr.notests rcupdate.rcu_expedited=1 i8042.noaux i8042.nokbd 8250.nr_uarts=1 random.trust_cpu=on tsc=reliable no_timer_check loglevel=7
        -chardev socket,id=console,fd=10
        -serial chardev:console
        -chardev socket,id=control,fd=11
        -mon chardev=control,mode=control
        -chardev socket,id=agent,fd=12
        -device virtio-serial-pci,max_ports=2
        -device virtserialport,nr=1,chardev=agent,name=kiln.agent
        -object rng-random,id=entropy,filename=/dev/urandom
        -device virtio-rng-pci,rng=entropy
        -chardev socket,id=disk0,path=/d/with,,comma.sock,reconnect=1
        -device {"chardev":"disk0","driver":"vhost-user-blk-pci","num-queues":2}
        -blockdev {"cache":{"direct":false,"no-flush":true},"discard":"unmap","driver":"raw","file":{"cache":{"direct":false,"no-flush":true},"discard":"unmap","driver":"file","filename":"/d/with,comma.raw"},"node-name":"disk1"}
        -device {"drive":"disk1","driver":"virtio-blk-pci","serial":"scratch"}
        "#);
    }

    #[test]
    fn kvm_gets_the_hosts_processor_and_no_promise_about_its_clock() {
        let line = lines(&VmSpec { acceleration: Acceleration::Kvm, ..spec() });
        assert!(line.contains("-accel kvm\n-cpu host"), "{line}");
        assert!(!line.contains("tsc=reliable"), "{line}");
    }

    #[test]
    fn a_machine_without_disks_keeps_its_memory_to_itself() {
        let line = lines(&VmSpec { disks: Vec::new(), ..spec() });
        assert!(
            !line.contains("share=on") && line.contains("-machine q35,sata=off,smbus=off\n"),
            "{line}"
        );
    }

    #[test]
    fn a_later_qemu_is_told_to_connect_again_in_its_own_words() {
        let line = lines(&VmSpec { emulator: Emulator::for_test_of([10, 0, 2]), ..spec() });
        assert!(line.contains("comma.sock,reconnect-ms=100\n"), "{line}");
    }

    /// What differs between a machine that is saved and what it becomes must not be a part of its state.
    #[test]
    fn a_restored_machine_has_the_devices_of_the_saved_one_and_needs_no_kernel() {
        let nbd = |serial: &str| DiskSpec::Nbd {
            serial: serial.into(),
            socket: "/d/with,comma.sock".into(),
            read_only: false,
        };
        let spec = VmSpec { disks: vec![nbd("scratch")], ..spec() };
        let channels = Channels { console: 10, control: 11, agent: 12 };
        let words = |beginning| -> Vec<String> {
            let words = spec.arguments(channels, beginning).unwrap();
            words.into_iter().map(|word| word.into_string().unwrap()).collect()
        };
        let (boots, restored) = (words(Beginning::BootInFile(9)), words(Beginning::Restored(9)));
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these.iter().filter(|word| !those.contains(word)).cloned().collect()
        };
        insta::assert_snapshot!(only(&restored, &boots).join("\n"), @r"
        memory-backend-file,id=memory,size=524288K,mem-path=/proc/self/fd/9,share=off
        -incoming
        defer
        ");
        let gone = only(&boots, &restored);
        assert!(gone.iter().any(|word| word == "-kernel"), "{gone:?}");
        assert!(gone.iter().any(|word| word.contains("mem-path=/proc/self/fd/9,share=on")));
        let disk = restored.iter().find(|word| word.contains("reconnect-delay")).unwrap();
        insta::assert_snapshot!(disk, @r#"{"cache":{"direct":false,"no-flush":false},"discard":"unmap","driver":"nbd","node-name":"disk0","read-only":false,"reconnect-delay":10,"server":{"path":"/d/with,comma.sock","type":"unix"}}"#);
        let refused = VmSpec { disks: vec![nbd("a-serial-of-more-than-20")], ..spec.clone() };
        assert!(refused.arguments(channels, Beginning::Boot).is_err());
    }

    #[test]
    fn a_machine_that_cannot_be_is_refused_with_a_reason() {
        let channels = Channels { console: 10, control: 11, agent: 12 };
        let long = "x".repeat(3000);
        let refused = [
            VmSpec { cpus: 0, ..spec() },
            VmSpec { memory: ByteLen::mib(1), ..spec() },
            VmSpec { parameters: vec![long], ..spec() },
            VmSpec { disks: vec![DiskSpec::Served { socket: "/s".repeat(60).into() }], ..spec() },
        ];
        let reasons: Vec<String> = refused
            .iter()
            .map(|spec| spec.arguments(channels, Beginning::Boot).unwrap_err().to_string())
            .collect();
        assert!(reasons[0].contains("at least one processor"), "{reasons:?}");
        assert!(reasons[1].contains("32M or more"), "{reasons:?}");
        assert!(reasons[2].contains("2047"), "{reasons:?}");
        assert!(reasons[3].contains("120 bytes and the kernel takes 107"), "{reasons:?}");
    }
}
