#!/usr/bin/env python3
"""A screenshot of a workflow in ComfyUI's own page, by a headless Chromium.

PYTHON_OF_COMFYUI picture_of_workflow.py http://127.0.0.1:8188 WORKFLOW.json OUT.png [WIDTH HEIGHT]
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PORT = 9333
LOADED = "!!(window.app && window.app.graph && window.app.canvas && document.querySelector('canvas'))"
FIT = """(async () => {{
    await window.app.loadGraphData({graph});
    await new Promise(done => setTimeout(done, 1500));
    const nodes = window.app.graph._nodes;
    const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 40;
    const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
    const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
    const scale = Math.min({width} * 0.92 / (right - left), {height} * 0.84 / (bottom - top));
    const view = window.app.canvas.ds;
    view.scale = scale;
    view.offset = [{width} / scale / 2 - (left + right) / 2, {height} / scale / 2 - (top + bottom) / 2];
    window.app.canvas.setDirty(true, true);
    document.querySelectorAll(
        '.side-tool-bar-container, .p-dialog-mask, .p-toast, .graph-canvas-menu, .minimap-main-container'
    ).forEach(part => part.remove());
    await new Promise(done => setTimeout(done, 1500));
    return nodes.length;
}})()"""


class Page:
    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0

    async def ask(self, method: str, **params: Any) -> Any:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            answer = await self.socket.receive_json()
            if answer.get("id") == self.number:
                return answer["result"]

    async def value(self, expression: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


async def shoot(url: str, workflow: Path, out: Path, width: int, height: int) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as web:
        for _ in range(60):
            try:
                async with web.get(f"http://127.0.0.1:{PORT}/json") as reply:
                    targets = [target for target in await reply.json() if target["type"] == "page"]
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.5)
        async with web.ws_connect(targets[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            await page.ask("Emulation.setDeviceMetricsOverride", **sizes)
            # Of Impact Pack 7.10.6: it stops this version of the page from reading any workflow with switches in it.
            await page.ask("Network.enable")
            await page.ask("Network.setBlockedURLs", urls=["*/comboBoolMigration.js"])
            await page.ask("Page.navigate", url=url)
            for _ in range(120):
                await asyncio.sleep(0.5)
                if await page.value(LOADED):
                    break
            await asyncio.sleep(4)
            fit = FIT.format(graph=json.dumps(json.loads(workflow.read_text())), width=width, height=height)
            print(f"{await page.value(fit)} nodes")
            shot = await page.ask("Page.captureScreenshot", format="png")
            out.write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    url, workflow, out, *size = sys.argv[1:]
    width, height = map(int, size or (1900, 900))
    chromium = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as profile:
        browser = subprocess.Popen(
            [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={PORT}",
             f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            asyncio.run(shoot(url, Path(workflow), Path(out), width, height))
        finally:
            browser.terminate()
            browser.wait(20)


if __name__ == "__main__":
    main()
