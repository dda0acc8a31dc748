//! Pictures by which people judge an unfinished style: the same prompts, photographs and noise every time.

use super::{Habits, Order, Painter, Request, StyleChoice};
use crate::camera::Frame;
use crate::canvas::{Canvas, Metadata, contact_sheet};
use crate::style::Style;
use crate::{Error, Result};

/// Steps of such a picture: enough to see where the style goes.
pub const STEPS: usize = 12;
/// Pictures in a row of the sheet.
const COLUMNS: usize = 4;

/// What is painted with an unfinished style.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// Prompts, with `{}` where the style goes.
    pub prompts: Vec<String>,
    /// Photographs, and what they are called.
    pub photographs: Vec<(String, Frame)>,
    /// Guidance scale of the prompt; without one, as anywhere.
    pub guidance: Option<f64>,
    /// What else the place where it is painted is used to.
    pub habits: Habits,
}

impl Validation {
    /// Whether there is nothing to paint.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty() && self.photographs.is_empty()
    }

    /// Whether every picture could be painted with a style of this name.
    ///
    /// # Errors
    /// [`Error::Usage`] for a prompt that cannot be read or names another style.
    pub fn check(&self, painter: &Painter, token: &str) -> Result<()> {
        let width = painter.text_encoder().width();
        let style = Style { token: token.to_owned(), vectors: vec![vec![0.0; width]], ..Style::default() };
        for (_, order) in self.orders(painter, &style)? {
            order.prompt_text()?;
        }
        Ok(())
    }

    /// One labelled picture for each prompt and photograph, and how the first was painted; `interrupt` is asked before
    /// every step.
    ///
    /// # Errors
    /// [`Error::Usage`] without prompts and photographs; whatever painting reports, and what `interrupt` returns.
    pub fn sheet(
        &self,
        painter: &Painter,
        style: &Style,
        interrupt: &mut dyn FnMut() -> Result<()>,
    ) -> Result<(Canvas, Metadata)> {
        let orders = self.orders(painter, style)?;
        let Some((_, first)) = orders.first() else {
            return Err(Error::Usage("there is neither a prompt nor a photograph to validate the style with".into()));
        };
        let mut pictures = vec![];
        for (_, order) in &orders {
            pictures.push(painter.paint(order, &mut |_| interrupt())?);
        }
        let labels = orders.iter().map(|(label, _)| label.as_str());
        let cells: Vec<(&str, &Canvas)> = labels.zip(&pictures).collect();
        Ok((contact_sheet(&cells, cells.len().min(COLUMNS))?, painter.metadata(first)?))
    }

    fn orders(&self, painter: &Painter, style: &Style) -> Result<Vec<(String, Order)>> {
        let order = |prompt: Option<&String>, photograph: Option<&Frame>| {
            let request = Request {
                styles: vec![style.token.clone()],
                prompt: prompt.cloned(),
                steps: Some(STEPS),
                guidance: self.guidance,
                seed: Some(0),
                ..Request::default()
            };
            let styles = vec![StyleChoice::Learned(style.clone())];
            Ok::<_, Error>(request.order(painter, styles, photograph.cloned(), self.habits)?.0)
        };
        let mut orders = vec![];
        for prompt in &self.prompts {
            let order = order(Some(prompt), None)?;
            orders.push((order.prompt_text()?, order));
        }
        for (name, photograph) in &self.photographs {
            orders.push((name.clone(), order(None, Some(photograph))?));
        }
        Ok(orders)
    }
}
