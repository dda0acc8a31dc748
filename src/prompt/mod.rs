//! Words for the networks: tokens, places for styles in a prompt, and [`Conditioning`].

mod conditioning;
mod template;
mod tokenizer;

pub use conditioning::Conditioning;
pub use template::{PromptStyle, Template, Tokens};
pub use tokenizer::Tokenizer;
