// A page that is opened as a file may not start a worker, so the search runs in a hidden frame.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.waiting = [];
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.documentElement.append(frame);
    const inside = (this.inside = frame.contentWindow);
    // What the program says to itself it says to us.
    inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
    inside.importScripts = (...urls) => Promise.all(urls.map(one => this.load(one)));
    this.load(url).then(() => {
      const waiting = this.waiting;
      this.waiting = null;
      waiting.forEach(data => this.postMessage(data));
    });
  }

  load(url) {
    return new Promise((loaded, failed) => {
      const script = this.inside.document.createElement("script");
      script.src = url;
      script.onload = loaded;
      script.onerror = failed;
      this.inside.document.head.append(script);
    });
  }

  postMessage(data) {
    if (this.waiting) this.waiting.push(data);
    else this.inside.dispatchEvent(new MessageEvent("message", {data}));
  }

  terminate() {
    this.inside.frameElement.remove();
  }
}
if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
