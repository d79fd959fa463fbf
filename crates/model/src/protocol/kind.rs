//! The numbers by which frames say what they hold: below 128 the host's, above it the guest's.

pub(super) const HELLO: u8 = 1;
pub(super) const EXEC: u8 = 2;
pub(super) const STDIN: u8 = 3;
pub(super) const CLOSE_STDIN: u8 = 4;
pub(super) const RESIZE: u8 = 5;
pub(super) const SIGNAL: u8 = 6;
pub(super) const HOST_CREDIT: u8 = 7;
pub(super) const PUSH: u8 = 8;
pub(super) const PUSH_DATA: u8 = 9;
pub(super) const PUSH_END: u8 = 10;
pub(super) const PULL: u8 = 11;
pub(super) const LOAD_MODULES: u8 = 12;
pub(super) const STAT: u8 = 13;
pub(super) const SYNC: u8 = 14;
pub(super) const POWER_OFF: u8 = 15;
pub(super) const SET_CLOCK: u8 = 16;
pub(super) const SEED_ENTROPY: u8 = 17;
pub(super) const PING: u8 = 18;
pub(super) const CANCEL: u8 = 19;
pub(super) const RESCAN_DISKS: u8 = 20;

pub(super) const WELCOME: u8 = 129;
pub(super) const STARTED: u8 = 130;
pub(super) const OUTPUT: u8 = 131;
pub(super) const EXITED: u8 = 132;
pub(super) const GUEST_CREDIT: u8 = 133;
pub(super) const ENTRY: u8 = 134;
pub(super) const DATA: u8 = 135;
pub(super) const ENTRY_END: u8 = 136;
pub(super) const TROUBLE: u8 = 137;
pub(super) const DONE: u8 = 138;
pub(super) const STAT_IS: u8 = 139;
pub(super) const PONG: u8 = 140;
pub(super) const HEARTBEAT: u8 = 141;
pub(super) const ERROR: u8 = 142;
