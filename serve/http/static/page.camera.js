// The camera: open, take photos, close. Browsers offer it only to pages from https or from this machine.

import { byId } from "./page.dom.js";

const WANTED = { video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } } };
const REASONS = {
  NotAllowedError: "The browser was not allowed to use the camera; allow it in the address bar, then try again.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

export function setupCamera({ onPhoto, notice }) {
  const [opener, panel, view, shoot] = ["camera-open", "camera", "camera-view", "camera-shoot"].map(byId);
  let stream = null;
  let taken = 0;

  if (!navigator.mediaDevices?.getUserMedia) {
    opener.disabled = true;
    byId("camera-hint").hidden = false;
    byId("camera-hint").textContent = window.isSecureContext
      ? "This browser does not offer pages a camera."
      : "No camera is available: browsers offer it only to pages from https or from localhost.";
    return;
  }

  function close() {
    stream?.getTracks().forEach((track) => track.stop());
    stream = view.srcObject = null;
    opener.disabled = false;
    if (panel.contains(document.activeElement)) opener.focus();
    panel.hidden = true;
  }

  opener.addEventListener("click", async () => {
    notice("");
    opener.disabled = true; // while the browser asks
    try {
      stream = await navigator.mediaDevices.getUserMedia(WANTED);
      view.srcObject = stream;
      panel.hidden = false;
      await view.play();
      stream.getVideoTracks()[0].addEventListener("ended", close); // it was unplugged
      shoot.focus();
    } catch (error) {
      close();
      notice(REASONS[error.name] ?? `The camera could not be opened: ${error.message}`);
    }
  });

  shoot.addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = view.videoWidth;
    canvas.height = view.videoHeight;
    canvas.getContext("2d").drawImage(view, 0, 0);
    canvas.toBlob(
      (blob) => {
        if (blob) onPhoto(new File([blob], `camera ${++taken}.jpg`, { type: "image/jpeg" }));
        else notice("The camera has no picture yet; try again.");
      },
      "image/jpeg",
      0.92,
    );
  });

  byId("camera-close").addEventListener("click", close);
  window.addEventListener("pagehide", close);
}
