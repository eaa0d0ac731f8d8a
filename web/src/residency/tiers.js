// How each residence looks: a colour of a palette that all kinds of colour vision tell apart (Okabe and
// Ito), and a pattern, so that no information is in colour alone. Keys: header.residences.
export const TIERS = {
  vram: { name: 'in VRAM', colour: '--tier-vram', pattern: 'bars' },
  memory: { name: 'in memory', colour: '--tier-memory', pattern: 'solid' },
  memory_ahead: { name: 'read ahead, not used yet', colour: '--tier-ahead', pattern: 'diagonal' },
  ring: { name: 'streamed for a prompt', colour: '--tier-ring', pattern: 'lines' },
  reading: { name: 'being read', colour: '--tier-reading', pattern: 'dots' },
  reading_ahead: { name: 'being read ahead', colour: '--tier-reading', pattern: 'diagonal' },
  lost: { name: 'damaged on the drive', colour: '--tier-lost', pattern: 'cross' },
  drive: { name: 'on the drive', colour: '--tier-drive', pattern: 'hollow' },
};

// Draws a pattern over a filled cell.
export function drawPattern(context, pattern, x, y, width, height, ink) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = 1.5;
  context.beginPath();
  if (pattern === 'diagonal') {
    for (let offset = -height; offset < width; offset += 5) {
      context.moveTo(x + offset, y + height);
      context.lineTo(x + offset + height, y);
    }
  } else if (pattern === 'lines') {
    for (let at = 2; at < height; at += 4) {
      context.moveTo(x, y + at);
      context.lineTo(x + width, y + at);
    }
  } else if (pattern === 'bars') {
    for (let at = 2; at < width; at += 4) {
      context.moveTo(x + at, y);
      context.lineTo(x + at, y + height);
    }
  } else if (pattern === 'cross') {
    context.moveTo(x, y);
    context.lineTo(x + width, y + height);
    context.moveTo(x + width, y);
    context.lineTo(x, y + height);
  } else if (pattern === 'dots') {
    for (let dx = 2; dx < width; dx += 4) {
      for (let dy = 2; dy < height; dy += 4) context.rect(x + dx - 0.75, y + dy - 0.75, 1.5, 1.5);
    }
  }
  if (pattern === 'dots') context.fill();
  else context.stroke();
  context.restore();
}
