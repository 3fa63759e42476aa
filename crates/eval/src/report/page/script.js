// Phones have no pointer to hover with: a tapped token shows its experts at the bottom of the screen.
document.addEventListener('click', (event) => {
  const pick = document.getElementById('pick');
  if (!pick) return;
  const token = event.target.closest('.t');
  for (const other of document.querySelectorAll('.t.picked')) other.classList.remove('picked');
  pick.textContent = token ? token.textContent.trim() + ': ' + token.title : '';
  if (token) token.classList.add('picked');
});
