//! What waits to be sent, and who may add to it.
//!
//! Metered answers wait for credit of the host and for room in the queue; that is what stops a flood
//! at its source. Everything else is small, answers something the host asked, and is always taken. A
//! heartbeat overtakes the queue and is there at most once.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_model::protocol::{Answer, CONTROL, ErrorKind, HEADER_LEN, INITIAL_CREDIT, MAX_CHUNK};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

/// Queued bytes from which on nothing metered is taken.
const ENOUGH: usize = 256 * 1024;

/// The channel was closed or the conversation is over: stop working.
#[derive(Debug)]
pub(crate) struct Gone;

/// Names a conversation for workers that may outlive it.
pub(crate) type Conversation = u64;

#[derive(Debug, Default)]
struct State {
    conversation: Conversation,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    credit: HashMap<u32, u64>,
    heartbeat: Option<Vec<u8>>,
    /// The loop has sent all there was.
    is_sent: bool,
}

/// The queue, shared by the agent's loop and its workers.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Room, credit, or the end of a channel.
    changed: Condvar,
    wake: OwnedFd,
}

impl Outbox {
    pub(crate) fn new() -> io::Result<Outbox> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Outbox { state: Mutex::default(), changed: Condvar::new(), wake })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when something was queued from another thread.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
    }

    fn wake_loop(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Ends whatever conversation there was, drops what it still had to say, and begins the next.
    pub(crate) fn begin(&self) -> Conversation {
        let mut state = self.state();
        state.conversation += 1;
        state.frames.clear();
        state.bytes = 0;
        state.credit.clear();
        state.heartbeat = None;
        self.changed.notify_all();
        state.conversation
    }

    /// Gives a channel its first credit. False if it was open already.
    pub(crate) fn open(&self, channel: u32) -> bool {
        self.state().credit.insert(channel, u64::from(INITIAL_CREDIT)).is_none()
    }

    pub(crate) fn close(&self, channel: u32) {
        self.state().credit.remove(&channel);
        self.changed.notify_all();
    }

    pub(crate) fn grant(&self, channel: u32, bytes: u32) {
        if let Some(credit) = self.state().credit.get_mut(&channel) {
            *credit = credit.saturating_add(u64::from(bytes));
        }
        self.changed.notify_all();
    }

    /// Queues an answer that is not metered.
    pub(crate) fn send(&self, conversation: Conversation, channel: u32, answer: &Answer) {
        let mut state = self.state();
        if state.conversation == conversation {
            push(&mut state, channel, answer);
            drop(state);
            self.wake_loop();
        }
    }

    /// Queues a channel's last answer.
    pub(crate) fn finish(&self, conversation: Conversation, channel: u32, answer: &Answer) {
        let mut state = self.state();
        if state.conversation == conversation && state.credit.remove(&channel).is_some() {
            push(&mut state, channel, answer);
            drop(state);
            self.wake_loop();
        }
    }

    /// The latest heartbeat replaces one that could not be sent yet.
    pub(crate) fn beat(&self, answer: &Answer) {
        let mut frame = Vec::new();
        if answer.encode(CONTROL, &mut frame).is_ok() {
            self.state().heartbeat = Some(frame);
        }
    }

    /// How many bytes of output the channel may queue now.
    pub(crate) fn budget(&self, channel: u32) -> usize {
        // One byte of an output's payload says which stream it is.
        budget(&self.state(), channel).saturating_sub(1).min(MAX_CHUNK)
    }

    /// Queues a metered answer for which there is budget.
    pub(crate) fn send_metered(&self, channel: u32, answer: &Answer) {
        let mut state = self.state();
        let length = push(&mut state, channel, answer);
        spend(&mut state, channel, length);
    }

    /// Queues a metered answer as soon as there is budget.
    pub(crate) fn wait_and_send(
        &self,
        conversation: Conversation,
        channel: u32,
        answer: &Answer,
    ) -> Result<(), Gone> {
        let frame = frame_of(channel, answer);
        let length = frame.len() - HEADER_LEN;
        let mut state = self.state();
        loop {
            if state.conversation != conversation || !state.credit.contains_key(&channel) {
                return Err(Gone);
            }
            if budget(&state, channel) >= length {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        spend(&mut state, channel, length);
        state.bytes += frame.len();
        state.frames.push_back(frame);
        state.is_sent = false;
        drop(state);
        self.wake_loop();
        Ok(())
    }

    /// Waits until all that was queued is sent, or somebody has waited long enough.
    pub(crate) fn wait_until_sent(&self, patience: Duration) {
        let state = self.state();
        let _ = self.changed.wait_timeout_while(state, patience, |state| !state.is_sent);
    }

    /// The next frame to send, whole.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        if let Some(beat) = state.heartbeat.take() {
            return Some(beat);
        }
        let Some(frame) = state.frames.pop_front() else {
            // It comes for the next one when it is done with the last.
            state.is_sent = true;
            self.changed.notify_all();
            return None;
        };
        state.bytes -= frame.len();
        if state.bytes < ENOUGH {
            self.changed.notify_all();
        }
        Some(frame)
    }
}

fn budget(state: &State, channel: u32) -> usize {
    if state.bytes >= ENOUGH {
        return 0;
    }
    let credit = state.credit.get(&channel).copied().unwrap_or(0);
    usize::try_from(credit).unwrap_or(usize::MAX)
}

fn spend(state: &mut State, channel: u32, length: usize) {
    if let Some(credit) = state.credit.get_mut(&channel) {
        *credit = credit.saturating_sub(u64::try_from(length).unwrap_or(u64::MAX));
    }
}

/// Returns how long the payload is.
fn push(state: &mut State, channel: u32, answer: &Answer) -> usize {
    let frame = frame_of(channel, answer);
    let length = frame.len();
    state.bytes += length;
    state.frames.push_back(frame);
    state.is_sent = false;
    length - HEADER_LEN
}

fn frame_of(channel: u32, answer: &Answer) -> Vec<u8> {
    let mut frame = Vec::new();
    if let Err(error) = answer.encode(channel, &mut frame) {
        let text = format!("an answer does not fit: {error}").into_bytes();
        // Short enough for any frame.
        let _ = Answer::Error { kind: ErrorKind::Failed, text }.encode(channel, &mut frame);
    }
    frame
}
