// Run Lighthouse on each address given, in one headless Chromium, with desktop settings;
// print a line of JSON for each. Called by book/audit.py.
import { launch } from "chrome-launcher";
import lighthouse, { desktopConfig } from "lighthouse";

const chrome = await launch({
  chromeFlags: ["--headless=new", "--no-sandbox", "--disable-background-networking"],
});
const audit = (url) =>
  lighthouse(url, { port: chrome.port, logLevel: "silent" }, desktopConfig);
const urls = process.argv.slice(2);
try {
  await audit(urls[0]); // not counted: a browser that has just started is slow
  for (const url of urls) {
    const { lhr } = await audit(url);
    const scores = {};
    const faults = [];
    for (const [name, { score, auditRefs }] of Object.entries(lhr.categories)) {
      scores[name] = Math.round(100 * score);
      for (const { id, weight } of auditRefs) {
        const audit = lhr.audits[id];
        if (weight && audit.score !== null && audit.score < 0.9)
          faults.push(`${name}: ${audit.title} ${audit.displayValue ?? ""}`.trim());
      }
    }
    console.log(JSON.stringify({ url, scores, faults }));
  }
} finally {
  chrome.kill();
}
