#![doc = include_str!("../README.md")]
//!
//! Data flows one way: [`Chart`] and [`Table`] hold plain data, drawing turns a chart into SVG, and
//! [`Page::html`] puts the parts through one template.

#![forbid(unsafe_code)]

mod axis;
mod chart;
mod colour;
mod draw;
mod error;
mod page;
mod table;
mod text;

pub use axis::Axis;
pub use chart::{Bar, Chart, Series};
pub use colour::Colour;
pub use error::Error;
pub use page::{Figure, Page, Term};
pub use table::Table;
