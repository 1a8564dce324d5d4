//! Ekko: block-based backups of virtual machines in one deduplicating store.
//!
//! A disk is read as an [`image`], divided into [`segment`]s, each distinct segment is encoded by the
//! [`codec`] chain and kept once in the [`store`], and a [`manifest`] says how to put one backup of
//! one disk together again. A [`repository`] holds all of it on disk; [`backup`] and [`restore`] are
//! the jobs that move the data, [`exchange`] those that move it from and to the original's formats, [`machine`] those of
//! several disks at one moment.
//!
//! ```text
//! image -> segments -> (all zero? dropped) -> hash -> store -> manifest -> refcounts
//! manifest -> store -> decode -> verify -> target
//! ```
//!
//! # Rooms
//!
//! The modules below stand in order: each imports only from those above it, which `tests/layers.rs`
//! holds. The library never prints, never reads the environment, and reports through
//! [`progress::Progress`].
//!
//! The rooms from `api` on need the feature `service`, which is on by default: who embeds the store can do without them and
//! the half of all dependencies that they bring.

pub mod error;
pub mod escape;
pub mod time;

pub mod progress;

pub mod pace;

pub mod segment;

pub mod storage;

pub mod image;

pub mod codec;

pub mod manifest;

pub mod store;

pub mod repository;

pub mod backup;
pub mod check;
pub mod restore;

pub mod exchange;
pub mod machine;

#[cfg(feature = "service")]
pub mod api;

#[cfg(feature = "service")]
pub mod remote;
#[cfg(feature = "service")]
pub mod service;

#[cfg(feature = "service")]
pub mod cli;
