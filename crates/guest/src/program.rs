//! Starting a program without making a copy of ourselves first.
//!
//! The child borrows our memory until it becomes the program, and is born in its control group. A translated guest pays
//! for every new piece of kernel code that runs: copying an address space only to throw it away, and moving a process
//! between groups, which waits for all processors, are a good part of what a small program costs.

use std::arch::asm;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, chdir, ioctl_tiocsctty, setsid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stdin};

use crate::cgroup::Cgroup;

/// Where programs are looked for when their environment does not say.
const PATH: &[u8] = b"/bin:/usr/bin";
/// What a script without an interpreter of its own is run by, as every shell does.
const SHELL: &CStr = c"/bin/sh";
/// Words of 16 bytes: 64 KiB, of which a page or two are used.
const STACK: usize = 4096;

/// A program with all it is started with.
#[derive(Debug)]
pub(crate) struct Program {
    argv: Vec<CString>,
    environment: Vec<CString>,
    /// Where it may be, in the order in which that is tried.
    paths: Vec<CString>,
    folder: CString,
}

/// What the program gets besides its words.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// Standard input, output and error.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Whether standard input is the terminal it is in charge of.
    pub(crate) on_terminal: bool,
    pub(crate) cgroup: Option<&'a Cgroup>,
}

/// All that the child needs, made before it is there: it must neither allocate nor lock.
struct Birth<'a> {
    surroundings: &'a Surroundings<'a>,
    /// Where it moves itself into its group, where it was not born in it.
    door: Option<OwnedFd>,
    paths: &'a [CString],
    folder: &'a CString,
    argv: *const *const c_char,
    /// The same behind [`SHELL`], with room for the path.
    script: &'a [Cell<*const c_char>],
    environment: *const *const c_char,
    /// Why it did not become the program.
    error: i32,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn words<'a>(words: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<CString>> {
    words.map(|word| CString::new(word).map_err(|_| invalid("a word with a zero in it"))).collect()
}

/// Pointers to the words, and one to nothing.
fn pointers(words: &[CString]) -> Vec<*const c_char> {
    words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
}

impl Program {
    /// A program of this name, or at this path. Of two variables of one name the later one counts.
    ///
    /// # Errors
    /// When there is no name, or a zero in a word.
    pub(crate) fn new<'a>(
        argv: &'a [Vec<u8>],
        environment: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        folder: &[u8],
    ) -> io::Result<Program> {
        let name = argv.first().ok_or_else(|| invalid("no program named"))?;
        let mut variables: Vec<(&[u8], &[u8])> = Vec::new();
        for (key, value) in environment {
            variables.retain(|(known, _)| *known != key);
            variables.push((key, value));
        }
        let path = variables.iter().find(|(key, _)| *key == b"PATH").map_or(PATH, |(_, is)| *is);
        let paths: Vec<Vec<u8>> = if name.is_empty() || name.contains(&b'/') {
            vec![name.clone()]
        } else {
            path.split(|byte| *byte == b':').map(|folder| [folder, b"/", name].concat()).collect()
        };
        let joined: Vec<Vec<u8>> =
            variables.iter().map(|(key, value)| [*key, b"=", *value].concat()).collect();
        Ok(Program {
            argv: words(argv.iter().map(Vec::as_slice))?,
            environment: words(joined.iter().map(Vec::as_slice))?,
            paths: words(paths.iter().map(Vec::as_slice))?,
            folder: CString::new(folder).map_err(|_| invalid("a folder with a zero in it"))?,
        })
    }

    /// Starts it as the leader of a session of its own. Returns when it runs.
    ///
    /// # Errors
    /// When the kernel makes no process, or it could not become the program; then it is buried already.
    pub(crate) fn start(&self, surroundings: &Surroundings<'_>) -> io::Result<Pid> {
        let argv = pointers(&self.argv);
        let script: Vec<_> =
            [SHELL.as_ptr()].into_iter().chain(pointers(&self.argv)).map(Cell::new).collect();
        let environment = pointers(&self.environment);
        let mut birth = Birth {
            surroundings,
            door: None,
            paths: &self.paths,
            folder: &self.folder,
            argv: argv.as_ptr(),
            script: &script,
            environment: environment.as_ptr(),
            error: 0,
        };
        let pid = bear(&mut birth)?;
        // SAFETY: a child wrote it while this thread stood still; it is read once, from where it is.
        let error = unsafe { ptr::read_volatile(&raw const birth.error) };
        if error != 0 {
            let _ = waitpid(Some(pid), WaitOptions::empty());
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(pid)
    }
}

/// `struct clone_args` of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE: usize = 56;
const EXECVE: usize = 59;
const RT_SIGACTION: usize = 13;
const RT_SIGPROCMASK: usize = 14;
const EXIT_GROUP: usize = 231;
const CLONE3: usize = 435;
const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: u64 = 17;
const SIGPIPE: usize = 13;
const SIG_SETMASK: usize = 2;
const NOT_FOUND: usize = 127;

/// Makes the child; returns when it is another program, or ended.
fn bear(birth: &mut Birth<'_>) -> io::Result<Pid> {
    let mut stack: Vec<u128> = Vec::with_capacity(STACK);
    let bottom = stack.as_mut_ptr();
    let size = STACK * size_of::<u128>();
    if let Some(group) = birth.surroundings.cgroup.and_then(Cgroup::folder) {
        let arguments = CloneArguments {
            flags: CLONE_VM | CLONE_VFORK | CLONE_INTO_CGROUP,
            exit_signal: SIGCHLD,
            stack: bottom.expose_provenance() as u64,
            stack_size: size as u64,
            cgroup: u64::try_from(group.as_raw_fd()).unwrap_or_default(),
            ..CloneArguments::default()
        };
        let first = (&raw const arguments).expose_provenance();
        // SAFETY: the arguments describe a stack that nobody else uses until the child has left it.
        let born = unsafe { clone(CLONE3, first, size_of::<CloneArguments>(), birth) };
        if let Ok(pid) = born {
            return Ok(pid);
        }
    }
    // A kernel that is too old for that, or does not let anyone into this group.
    birth.door = birth.surroundings.cgroup.and_then(|cgroup| cgroup.door().ok());
    let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
    let flags = usize::try_from(flags).unwrap_or_default();
    // SAFETY: as above; this call wants the upper end of the stack, which is aligned as the words are.
    let born = unsafe { clone(CLONE, flags, bottom.expose_provenance() + size, birth) };
    Ok(born?)
}

/// Makes a process that shares our memory and calls [`live`] on a stack of its own, while this thread stands still.
///
/// # Safety
/// The arguments must make `number` such a call, with a stack that is the child's alone.
unsafe fn clone(
    number: usize,
    first: usize,
    second: usize,
    birth: &mut Birth<'_>,
) -> Result<Pid, Errno> {
    let result: isize;
    // SAFETY: of this process only the result changes. The child starts behind the same instruction with all registers but
    // the stack's, and never comes back.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {birth}",
            "call {live}",
            "ud2",
            "2:",
            birth = in(reg) ptr::from_mut(birth),
            live = sym live,
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") 0_usize,
            in("r10") 0_usize,
            in("r8") 0_usize,
            out("rcx") _,
            out("r11") _,
        );
    }
    match i32::try_from(result).ok().and_then(Pid::from_raw).filter(|_| result > 0) {
        Some(pid) => Ok(pid),
        None => Err(Errno::from_raw_os_error(i32::try_from(-result).unwrap_or_default())),
    }
}

/// A system call without anything of libc, whose state is the parent's.
///
/// # Safety
/// As the call's.
unsafe fn call(number: usize, arguments: [usize; 4]) -> isize {
    let [first, second, third, fourth] = arguments;
    let result: isize;
    // SAFETY: by the caller's word.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

/// All the child does.
extern "C" fn live(birth: *mut Birth<'_>) -> ! {
    // SAFETY: whoever made us stands still until we are gone, and left this to us.
    let birth = unsafe { &mut *birth };
    birth.error = match birth.settle() {
        Ok(()) => birth.become_program(),
        Err(errno) => errno.raw_os_error(),
    };
    loop {
        // SAFETY: it ends this process, which holds nothing of its own.
        unsafe { call(EXIT_GROUP, [NOT_FOUND, 0, 0, 0]) };
    }
}

impl Birth<'_> {
    /// Files, folder, session and signals as the program is to find them.
    fn settle(&self) -> Result<(), Errno> {
        if let Some(door) = &self.door {
            // A program outside its group still runs; it is only harder to kill.
            let _ = rustix::io::write(door, b"0");
        }
        setsid()?;
        let [input, output, errors] = self.surroundings.stdio;
        dup2_stdin(input)?;
        dup2_stdout(output)?;
        dup2_stderr(errors)?;
        if self.surroundings.on_terminal {
            ioctl_tiocsctty(stdin())?;
        }
        chdir(self.folder.as_c_str())?;
        reset_signals();
        Ok(())
    }

    /// Comes back only with the number of an error.
    fn become_program(&self) -> i32 {
        let mut error = Errno::NOENT.raw_os_error();
        for path in self.paths {
            let mut found = self.execute(path.as_ptr(), self.argv);
            if found == Errno::NOEXEC.raw_os_error()
                && let Some(name) = self.script.get(1)
            {
                name.set(path.as_ptr());
                found = self.execute(SHELL.as_ptr(), self.script.as_ptr().cast());
            }
            match Errno::from_raw_os_error(found) {
                // The next one may be the one that is meant.
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => error = found,
                _ => return found,
            }
        }
        error
    }

    fn execute(&self, path: *const c_char, argv: *const *const c_char) -> i32 {
        execute(path, argv, self.environment)
    }
}

/// What a Rust program ignores, others want to die of.
fn reset_signals() {
    let default = [0_usize; 4];
    // SAFETY: the struct is read: handler, flags, restorer and mask, all zero.
    unsafe { call(RT_SIGACTION, [SIGPIPE, default.as_ptr().expose_provenance(), 0, 8]) };
    // SAFETY: an empty mask is read.
    unsafe { call(RT_SIGPROCMASK, [SIG_SETMASK, default.as_ptr().expose_provenance(), 0, 8]) };
}

/// Comes back only with the number of an error.
fn execute(
    path: *const c_char,
    argv: *const *const c_char,
    environment: *const *const c_char,
) -> i32 {
    // SAFETY: text that ends with a zero, and lists that end with nothing, made before and alive.
    let result = unsafe {
        call(
            EXECVE,
            [
                path.expose_provenance(),
                argv.expose_provenance(),
                environment.expose_provenance(),
                0,
            ],
        )
    };
    i32::try_from(-result).unwrap_or_default()
}

/// Becomes the program at `path`, called `name`, with our own environment. Comes back only when that failed.
pub(crate) fn become_program(path: &CStr, name: &CStr) -> io::Error {
    let variables = std::env::vars_os().filter_map(|(key, value)| {
        CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    });
    let variables: Vec<CString> = variables.collect();
    let (argv, environment) = ([name.as_ptr(), ptr::null()], pointers(&variables));
    reset_signals();
    io::Error::from_raw_os_error(execute(path.as_ptr(), argv.as_ptr(), environment.as_ptr()))
}
