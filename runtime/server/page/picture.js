// The picture: chosen, dropped, pasted or taken with the camera. Nothing leaves the page here.
const $ = (id) => document.getElementById(id);

let picture = null;
let stream = null;
let shown = null;

export const current = () => picture;

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.replace(/^data:[^,]*/, `data:${blob.type || "image/*"};base64`));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function show(blob, name) {
  stopCamera();
  picture = blob;
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(blob);
  $("preview").src = shown;
  $("preview").alt = `Your picture: ${name}`;
  $("preview").hidden = false;
  $("hint").hidden = true;
  $("status").textContent = `Picture ready: ${name}`;
}

function take(files) {
  const file = [...files].find((one) => one.type.startsWith("image/") || /\.(heic|heif|avif)$/i.test(one.name));
  if (file) show(file, file.name || "pasted");
  else $("status").textContent = "That is no picture.";
}

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  $("camera").hidden = true;
  $("camera").srcObject = null;
  $("shoot").textContent = "Use the camera";
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    $("status").textContent = `No camera: ${error.message}`;
    return;
  }
  $("preview").hidden = true;
  $("hint").hidden = true;
  $("camera").hidden = false;
  $("camera").srcObject = stream;
  await $("camera").play();
  $("shoot").textContent = "Take the picture";
}

function shoot() {
  const video = $("camera");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => show(blob, "from the camera"), "image/png");
}

export function listen() {
  const drop = $("drop");
  $("file").addEventListener("change", (event) => take(event.target.files));
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  $("shoot").addEventListener("click", () => (stream ? shoot() : startCamera()));
  // Only secure pages, of which those of this machine are some, may use a camera.
  $("shoot").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
}
