//! What the machine prints on its serial console: recorded whole within a bound, cut into lines.

mod line;
mod recorder;

pub use line::{Line, LineSplitter, MAX_LINE};
pub use recorder::Recorder;
