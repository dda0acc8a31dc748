// Pictures that a person brings.

/** Draws a file's picture on a canvas no wider than `widest`; whether it is one. */
export async function draw(file, canvas, widest) {
  const picture = await createImageBitmap(file).catch(() => null);
  if (!picture) return false;
  const scale = Math.min(1, widest / Math.max(picture.width, picture.height));
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return true;
}

/** Files dropped on a place or chosen in its field go to `take`. */
export function dropped(place, field, take) {
  field.addEventListener("change", () => {
    if (field.files.length) take([...field.files]);
  });
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
}
