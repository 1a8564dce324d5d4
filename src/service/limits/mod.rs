//! How much is taken: of everybody together, of each caller and from each address.
//!
//! Whatever is counted has a bound, and so has what it is counted in: the tables here grow with settings, never with
//! requests. Owns the counting; who is counted is said by [`crate::service`]'s guard, and what is refused goes through it.

mod address;
mod descriptors;
mod flight;
mod held;
mod patience;
mod quota;
mod rate;
mod seats;
mod shares;
mod steady;

pub(super) use address::Address;
pub(super) use descriptors::raise_descriptors;
pub(super) use flight::{Flight, Full, Pass};
pub(super) use held::Held;
pub(super) use patience::{PatientBody, is_too_slow};
pub(super) use quota::{Allowance, Quotas};
pub(super) use rate::Rates;
pub(super) use seats::{Seat, Seats};
pub(super) use shares::{Share, Shares};
pub(super) use steady::Steady;
