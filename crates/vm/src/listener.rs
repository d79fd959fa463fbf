//! The thread at the console: records, cuts into lines, looks for reports, tells.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::console::{LineSplitter, Recorder};
use crate::events::{VmEvent, VmEvents};
use crate::machine::Activity;
use crate::splat::Detector;

/// A report without an end mark is complete when the kernel has been silent for this long.
const END_OF_REPORT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Listens until the console's end.
pub(crate) fn listen(
    mut input: UnixStream,
    mut recorder: Recorder,
    events: &VmEvents,
    activity: &Activity,
) {
    let mut splitter = LineSplitter::default();
    let mut detector = Detector::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if detector.is_open() {
            let mut fds = [PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&END_OF_REPORT)) == Ok(0) {
                detector.finish(|splat| events.push(VmEvent::Splat(splat)));
            }
        }
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // A reset connection is the end too: QEMU left while we were writing to it.
            Err(_) => break,
        };
        let bytes = &buffer[..count];
        if let Err(error) = recorder.push(bytes) {
            events.push(VmEvent::ConsoleNotKept { reason: error.to_string() });
        }
        activity.note(count);
        splitter.push(bytes, |line| {
            detector.push(&line, |splat| events.push(VmEvent::Splat(splat)));
            events.push(VmEvent::Console(line));
        });
    }
    splitter.finish(|line| {
        detector.push(&line, |splat| events.push(VmEvent::Splat(splat)));
        events.push(VmEvent::Console(line));
    });
    detector.finish(|splat| events.push(VmEvent::Splat(splat)));
    if let Err(error) = recorder.finish() {
        events.push(VmEvent::ConsoleNotKept { reason: error.to_string() });
    }
}
