//! How long it takes to make a layer of a tar of /usr, beside others who make a file system of the same files: mke2fs,
//! and the kernel with tar on a loop device, which takes root.
//!
//! All of them run in turns, with everything in the page cache, and write to `KILN_BENCH_DIR`, else to memory: disks are
//! not what is measured. What is written is synced by all of them. Processor time is user and system, in hundredths of
//! a second. The best of several rounds counts, for the machine may have other work.
#![expect(clippy::print_stdout, reason = "figures for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends where something is not as it must be")]

mod content;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What the tar holds.
const CONTENT: u64 = 850 << 20;
/// How large the others' file systems are.
const SIZE: u64 = 1 << 30;
/// Times what the quickest of the others takes, an uncompressed layer may take.
const MOST: f64 = 1.2;

/// Wall and processor time.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

impl Took {
    const NEVER: Took = Took { wall: Duration::MAX, cpu: Duration::MAX };

    fn best(self, other: Took) -> Took {
        Took { wall: self.wall.min(other.wall), cpu: self.cpu.min(other.cpu) }
    }
}

struct Bench {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Bench {
    fn prepare() -> Bench {
        let place = std::env::var_os("KILN_BENCH_DIR").map(PathBuf::from);
        let place = place.or_else(|| Some(PathBuf::from("/dev/shm")).filter(|it| it.is_dir()));
        let place = place.unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in(place).unwrap();
        let program = std::env::var_os("KILN_BENCH_PROGRAM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_kiln").into()).into();
        let bench = Bench { folder, program };
        content::fill(&bench.path("tree"), CONTENT);
        fs::create_dir(bench.path("mnt")).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "-cf"]).arg(bench.path("usr.tar"));
        succeed(tar.arg("-C").arg(bench.path("tree")).arg("."));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn apply(&self, compress: &str) -> Took {
        let mut command = Command::new(&self.program);
        command.args(["layer", "apply", "usr.tar", "--output", "usr.obd", "--compress", compress]);
        command.current_dir(self.folder.path()).env("KILN_HOME", self.path("home"));
        let took = measure(|| succeed(&mut command));
        fs::remove_file(self.path("usr.obd")).unwrap();
        took
    }

    fn empty_image(&self) -> PathBuf {
        let image = self.path("disk.img");
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        image
    }

    fn mke2fs(&self) -> Took {
        let image = self.empty_image();
        let mut command = mke2fs(&image);
        command.arg("-d").arg(self.path("tree"));
        let took = measure(|| succeed(&mut command));
        fs::remove_file(image).unwrap();
        took
    }

    /// `None` where nothing can be mounted.
    fn kernel(&self) -> Option<Took> {
        let image = self.empty_image();
        let (mnt, tar) = (self.path("mnt"), self.path("usr.tar"));
        let mut can_mount = true;
        let took = measure(|| {
            succeed(&mut mke2fs(&image));
            let mut mount = quiet("mount");
            mount.args(["-o", "loop,noatime"]).arg(&image).arg(&mnt);
            can_mount = mount.status().is_ok_and(|status| status.success());
            if can_mount {
                let mut extract = Command::new("tar");
                let extracted = extract.arg("-xf").arg(&tar).arg("-C").arg(&mnt).status();
                succeed(Command::new("umount").arg(&mnt));
                assert!(extracted.unwrap().success(), "tar");
                File::open(&image).unwrap().sync_all().unwrap();
            }
        });
        fs::remove_file(image).unwrap();
        can_mount.then_some(took)
    }
}

fn mke2fs(image: &Path) -> Command {
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", "200000"]).arg(image);
    command
}

fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn succeed(command: &mut Command) {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn measure(act: impl FnOnce()) -> Took {
    let (start, before) = (Instant::now(), children_time());
    act();
    Took { wall: start.elapsed(), cpu: children_time().saturating_sub(before) }
}

/// Of children that were waited for: the 16th and 17th field, in hundredths of a second.
fn children_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(13).take(2);
    Duration::from_millis(ticks.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn main() -> ExitCode {
    let rounds = std::env::var("KILN_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: usize = rounds.unwrap_or(5);
    let bench = Bench::prepare();
    let mut best = [Took::NEVER; 4];
    let mut kernel_works = true;
    // The first round fills caches.
    for round in 0..=rounds {
        let kernel = kernel_works.then(|| bench.kernel()).flatten();
        kernel_works = kernel.is_some();
        let took = [
            bench.apply("none"),
            bench.apply("lz4"),
            bench.mke2fs(),
            kernel.unwrap_or(Took::NEVER),
        ];
        if round > 0 {
            best = [0, 1, 2, 3].map(|way| best[way].best(took[way]));
        }
    }
    let [plain, lz4, mke2fs, kernel] = best;
    println!("a tar of {} MiB of /usr, best of {rounds}:", CONTENT >> 20);
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    for (name, took) in [
        ("apply, uncompressed", plain),
        ("apply, lz4", lz4),
        ("mke2fs -d, ext4", mke2fs),
        ("mount and tar -x, ext4", kernel),
    ] {
        if took.wall == Duration::MAX {
            println!("  {name:<24} not measured: nothing can be mounted here");
            continue;
        }
        println!(
            "  {name:<24} {:>6.0} ms, {:.2} x mke2fs; processor {:>6.0} ms, {:.2} x mke2fs",
            took.wall.as_secs_f64() * 1e3,
            ratio(took.wall, mke2fs.wall),
            took.cpu.as_secs_f64() * 1e3,
            ratio(took.cpu, mke2fs.cpu)
        );
    }
    let found = ratio(plain.wall, mke2fs.wall.min(kernel.wall));
    let is_good = found <= MOST;
    let verdict = if is_good { "reached" } else { "MISSED" };
    println!("bar: uncompressed at most {MOST} x the quicker of the others: {found:.2}, {verdict}");
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
