//! Evaluation of a [`Learner`] on a set, example by example, and its predictions.

use std::ops::Range;

use candle_core::Tensor;
use candle_nn::Linear;

use super::learner::{Learner, question_loss};
use super::records::{Answers, Score};
use crate::data::{Batch, Examples, Inputs, Question, Row, Tokens};
use crate::error::Result;

impl Learner {
    /// Evaluates a set in batches of `batch`.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn score(&self, examples: &Examples, batch: usize) -> Result<Score> {
        Ok(self.answers(examples, batch)?.0)
    }

    /// Evaluates a set with another head.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn score_with(&self, head: &Linear, examples: &Examples, batch: usize) -> Result<Score> {
        Ok(self.answers_by(Some(head), examples, batch)?.0)
    }

    /// Evaluates a set; returns which of its examples are answered correctly, too.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn answers(&self, examples: &Examples, batch: usize) -> Result<(Score, Answers)> {
        self.answers_by(self.head(), examples, batch)
    }

    /// Returns the logits of each text's classes, or the mean log-probability of each question's choices, for a range
    /// of inputs in batches of `batch`.
    ///
    /// # Errors
    /// As [`Learner::loss`].
    pub fn predict(&self, inputs: &Inputs, which: Range<usize>, batch: usize) -> Result<Vec<Vec<f32>>> {
        let start = which.start;
        let mut all = vec![Vec::new(); which.len()];
        let order = by_length(which, |i| match inputs {
            Inputs::Texts(texts) => texts[i].len(),
            Inputs::Questions(questions) => longest(&questions[i]),
        });
        for which in order.chunks(batch) {
            let scores = match inputs {
                Inputs::Texts(texts) => {
                    let rows: Vec<&[u32]> = which.iter().map(|&i| texts[i].as_slice()).collect();
                    self.classes(self.head(), &Tokens::new(&rows), None)?.to_vec2()?
                }
                Inputs::Questions(questions) => {
                    let (scores, _) = self.choices(which.iter().map(|&i| questions[i].as_slice()), None)?;
                    scores.iter().map(Tensor::to_vec1).collect::<Result<_, _>>()?
                }
            };
            which.iter().zip(scores).for_each(|(&i, scores)| all[i - start] = scores);
        }
        Ok(all)
    }

    fn answers_by(
        &self,
        head: Option<&Linear>,
        examples: &Examples,
        batch: usize,
    ) -> Result<(Score, Answers)> {
        let order = by_length(0..examples.len(), |i| match examples {
            Examples::Labelled(all) => all[i].0.len(),
            Examples::Plain(all) => all[i].len(),
            Examples::Conversations(all) => all[i].ids.len(),
            Examples::Questions(all) => longest(&all[i].rows),
        });
        let mut loss = 0.0;
        let mut answers = match examples {
            Examples::Labelled(all) => Answers { right: vec![false; all.len()], right_by_sum: Vec::new() },
            Examples::Questions(all) => {
                Answers { right: vec![false; all.len()], right_by_sum: vec![false; all.len()] }
            }
            Examples::Plain(_) | Examples::Conversations(_) => Answers::default(),
        };
        for which in order.chunks(batch) {
            let weight = which.len() as f64;
            match examples {
                Examples::Labelled(all) => {
                    let batch = Batch::of(all, which);
                    let logits = self.classes(head, &batch.tokens, None)?.detach();
                    let labels = Tensor::new(batch.labels.as_slice(), logits.device())?;
                    loss += weight * scalar(&candle_nn::loss::cross_entropy(&logits, &labels)?)?;
                    let guesses: Vec<u32> = logits.argmax(1)?.to_vec1()?;
                    for ((&i, guess), label) in which.iter().zip(&guesses).zip(&batch.labels) {
                        answers.right[i] = guess == label;
                    }
                }
                Examples::Plain(_) | Examples::Conversations(_) => {
                    loss += weight * scalar(&self.loss(examples, which, None)?.0)?;
                }
                Examples::Questions(all) => {
                    let questions: Vec<&Question> = which.iter().map(|&i| &all[i]).collect();
                    let (scores, _) = self.choices(questions.iter().map(|q| q.rows.as_slice()), None)?;
                    loss += weight * scalar(&question_loss(&scores, &questions)?)?;
                    for ((&i, scores), question) in which.iter().zip(&scores).zip(questions) {
                        let means: Vec<f32> = scores.to_vec1()?;
                        answers.right[i] = first_best(&means) == question.answer;
                        answers.right_by_sum[i] =
                            first_best(&sums(&means, &question.rows)) == question.answer;
                    }
                }
            }
        }
        let n = examples.len() as f64;
        let right = answers.right.iter().filter(|right| **right).count();
        let accuracy = (!answers.right.is_empty()).then_some(right as f64 / n);
        Ok((Score { loss: loss / n, accuracy }, answers))
    }
}

/// Returns each choice's log-probability from its mean over the choice's tokens.
fn sums(means: &[f32], rows: &[Row]) -> Vec<f32> {
    means.iter().zip(rows).map(|(mean, (ids, from))| mean * (ids.len() - from) as f32).collect()
}

/// Returns the index of the largest value, the first of equal ones.
fn first_best(values: &[f32]) -> usize {
    let better = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (1..values.len()).fold(0, better)
}

/// Sorts indices from the shortest example to the longest, so that batches have little padding.
fn by_length(which: Range<usize>, len: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = which.collect();
    order.sort_by_key(|&i| len(i));
    order
}

/// Returns the length of a question with its longest choice.
fn longest(rows: &[Row]) -> usize {
    rows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0)
}

fn scalar(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.to_scalar::<f32>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_of_more_tokens_has_the_smaller_sum() {
        let rows: Vec<Row> = vec![(vec![1, 2, 3], 2), (vec![1, 2, 3, 4, 5], 2)];
        let means = [-1.5, -1.0];
        assert_eq!(sums(&means, &rows), [-1.5, -3.0]);
        assert_eq!((first_best(&means), first_best(&sums(&means, &rows))), (1, 0));
        assert_eq!(first_best(&[2.0, 3.0, 3.0]), 1);
    }
}
